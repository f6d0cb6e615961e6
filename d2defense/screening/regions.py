# SPDX-License-Identifier: Apache-2.0
"""The places of an image that carry what is odd about it: detections, and what was passed over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.layers import nms
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

from .passes import SeenImage

# A detection comes from a proposal of this IoU with it, and proposals this alike are one place.
_SAME = 0.5
# Part of the smaller of two boxes from which on they share a place.
_SHARED = 0.3


class Regions(NamedTuple):
    """B places of one image, all on the CPU."""

    boxes: Tensor
    """float (B, 4), XYXY in pixels of the network's input."""
    detected: Tensor
    """bool (B,): a detection; otherwise a proposal that touches none."""
    classes: Tensor
    """int64 (B,): of the detection; of a proposal, its likeliest."""
    objectness: Tensor
    """float (B,): logit of the RPN; 0 where the detector has none."""
    margins: Tensor
    """float (B,): logit of the likeliest class less that of background."""
    pooled: Tensor
    """float (B, C), see :class:`d2defense.modeling.BoxFeatures`."""
    classified: Tensor
    """float (B, F), likewise."""

    def take(self, rows: Tensor) -> Regions:
        """Some of them."""
        return Regions(*(field[rows] for field in self))


def regions_of(seen: SeenImage, min_score: float, max_detected: int, max_unclaimed: int) -> Regions:
    """The detections of an image, and the likeliest proposals that lie on none of them.

    Args:
        seen: the image.
        min_score: of a detection, 0..1.
        max_detected: the most detections, the surest first.
        max_unclaimed: the most other proposals, those of largest objectness first, without an RPN
            those that the classifier is surest of.
    """
    probe, boxes = seen.probe, seen.probe.proposal_boxes
    detected = seen.boxes[seen.scores >= min_score]
    classes = seen.classes[seen.scores >= min_score]
    rows = _origins(boxes, probe.class_logits, detected[:max_detected], classes[:max_detected])
    best = probe.class_logits[:, :-1].max(dim=1)
    margins = best.values - probe.class_logits[:, -1]
    objectness = probe.objectness_logits
    kept = nms(boxes, margins if objectness is None else objectness, _SAME)
    if len(detected):
        kept = kept[(shared_part(boxes[kept], detected) < _SHARED).all(dim=1)]
    kept = kept[:max_unclaimed]
    rows = torch.cat([rows, kept])
    count = len(rows) - len(kept)
    fields = Regions(
        torch.cat([detected[:count], boxes[kept]]),
        torch.arange(len(rows), device=rows.device) < count,
        torch.cat([classes[:count], best.indices[kept]]),
        torch.zeros_like(margins[rows]) if objectness is None else objectness[rows],
        margins[rows],
        seen.features.pooled[rows],
        seen.features.classified[rows],
    )
    return Regions(*(field.cpu() for field in fields))


def shared_part(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over the smaller area of each two boxes, from (A, 4) and (B, 4) to (A, B)."""
    a, b = Boxes(first), Boxes(second)
    return torch.maximum(pairwise_ioa(a, b), pairwise_ioa(b, a).T)


def _origins(proposals: Tensor, logits: Tensor, detected: Tensor, classes: Tensor) -> Tensor:
    """The proposal that each detection most likely comes from, int64 (D,)."""
    if not len(detected):
        return classes
    overlap = pairwise_iou(Boxes(detected), Boxes(proposals))
    # Where no proposal lies near it, since its box was moved far: the nearest.
    near = (overlap >= _SAME) | (overlap == overlap.amax(dim=1, keepdim=True))
    of_class = logits.softmax(dim=1)[:, classes].T
    return torch.where(near, of_class, -1.0).argmax(dim=1)
