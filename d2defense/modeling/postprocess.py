# SPDX-License-Identifier: Apache-2.0
"""Detections of a whole batch in one pass of NMS, and those of large scores alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

# Attributes of Detectron2's predictors, and the most that its configuration leaves out by default:
# FCOS has the highest score.
_SCORE, _LIMITS = "test_score_thresh", ("test_topk_per_image", "max_detections_per_image")
_USUAL_SCORE, _USUAL_LIMIT = 0.2, 100


def batch_detections(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    score_threshold: float,
    nms_threshold: float,
    detections_per_image: int,
) -> list[Instances]:
    """What Detectron2's ``fast_rcnn_inference`` returns, for all images at once.

    Stock code goes image by image; on small networks its many short calls cost more than the
    reduction of every proposal.

    Args:
        boxes: for each image a Tensor of shape (Ri, 4K) or (Ri, 4), XYXY in pixels.
        scores: for each image a Tensor of shape (Ri, K + 1), 0..1, background last.
        image_sizes: (height, width) of each image; boxes are cut to it.
        score_threshold: only detections above it.
        nms_threshold: IoU above which the weaker of two boxes of a class goes.
        detections_per_image: at most so many, the strongest; negative for all.

    Returns:
        for each image Instances with ``pred_boxes``, ``scores`` (falling) and ``pred_classes``.
    """
    counts = torch.tensor([len(s) for s in scores])
    image = torch.repeat_interleave(torch.arange(len(scores)), counts).to(scores[0].device)
    all_boxes, all_scores = torch.cat(list(boxes)), torch.cat(list(scores))
    finite = all_boxes.isfinite().all(dim=1) & all_scores.isfinite().all(dim=1)
    rows, classes = ((all_scores[:, :-1] > score_threshold) & finite[:, None]).nonzero().T
    num_classes = all_scores.shape[1] - 1
    # Of class-agnostic boxes there is one column for all classes.
    per_class = all_boxes.unflatten(1, (all_boxes.shape[1] // 4, 4))
    chosen = per_class[rows, classes if per_class.shape[1] > 1 else 0]
    limits = torch.tensor([(w, h, w, h) for h, w in image_sizes], device=chosen.device)
    chosen = torch.minimum(chosen.clamp(min=0), limits[image[rows]].to(chosen.dtype))
    strength = all_scores[rows, classes]
    kept = batched_nms(chosen, strength, image[rows] * num_classes + classes, nms_threshold)
    # NMS sorts by score; a stable sort by image keeps that order within each.
    kept_image, order = image[rows[kept]].sort(stable=True)
    kept = kept[order]
    found = torch.bincount(kept_image, minlength=len(scores)).tolist()
    parts = (values[kept].split(found) for values in (chosen, strength, classes))
    limit = detections_per_image if detections_per_image >= 0 else None
    detections = []
    for size, *fields in zip(image_sizes, *parts, strict=True):
        pred_boxes, pred_scores, pred_classes = (field[:limit] for field in fields)
        detections.append(
            Instances(
                size, pred_boxes=Boxes(pred_boxes), scores=pred_scores, pred_classes=pred_classes
            )
        )
    return detections


def kept_detections(detector: nn.Module) -> tuple[float, int]:
    """What the configuration keeps of the detections.

    Args:
        detector: with its predictors in it, or one of them.

    Returns:
        the score that they must exceed, 0..1, and how many of an image there are at most, negative
        for all; 0 and -1 where the configuration keeps as much as they usually do.
    """
    scores, limits = [0.0], []
    for module in detector.modules():
        scores += [getattr(module, _SCORE)] if hasattr(module, _SCORE) else []
        limits += [getattr(module, name) for name in _LIMITS if hasattr(module, name)]
    score = float(max(scores))
    limit = min((each for each in limits if 0 <= each < _USUAL_LIMIT), default=-1)
    return (score if score > _USUAL_SCORE else 0.0), int(limit)


@contextmanager
def detections_from(detector: nn.Module, score: float) -> Iterator[None]:
    """Let stock post-processing keep the detections from a score on, for a while.

    Where a score is asked for, a configuration that keeps fewer detections than Detectron2's, or
    surer ones alone, does not decide: it would hide what a detector sees beside its objects.

    Args:
        detector: with its predictors in it, or one of them.
        score: 0..1; 0 for what the configuration keeps.
    """
    if not score:
        yield
        return
    # Stock code keeps what is above its threshold; what equals ``score`` is wanted too.
    score = float(np.nextafter(np.float32(score), np.float32(0)))
    before = [
        (predictor, name, getattr(predictor, name))
        for predictor in detector.modules()
        for name in (_SCORE, *_LIMITS)
        if hasattr(predictor, name)
    ]
    try:
        for predictor, name, value in before:
            if name == _SCORE:
                value = max(min(value, _USUAL_SCORE), score)
            elif value >= 0:
                value = max(value, _USUAL_LIMIT)
            setattr(predictor, name, value)
        yield
    finally:
        for predictor, name, value in before:
            setattr(predictor, name, value)
