# SPDX-License-Identifier: Apache-2.0
"""Which true objects a detector found: the plain baseline under every other statistic."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

SCORE_THRESHOLD = 0.5
IOU_THRESHOLD = 0.5
#: An attack with less has not taken: nothing to test a defense on.
LEAST_ASR = 0.5
#: Nor one whose ASR is less than this above that of clean detectors under the same trigger.
LEAST_EXCESS = 0.3


def found_objects(
    target_boxes: Tensor,
    target_classes: Tensor | None,
    detection_boxes: Tensor,
    detection_classes: Tensor,
    detection_scores: Tensor,
    images: tuple[Tensor, Tensor] | None = None,
    score_threshold: float = SCORE_THRESHOLD,
) -> Tensor:
    """Whether each true object has a detection of score >= 0.5 and IoU >= 0.5.

    Several objects may share a detection: disappearance is what is measured, not counting.

    Args:
        target_boxes: Tensor of shape (M, 4), XYXY in pixels.
        target_classes: int64 Tensor of shape (M,): the detection must be of this class, where it
            is not negative; None to accept any.
        detection_boxes: Tensor of shape (D, 4), in the same pixels.
        detection_classes: int64 Tensor of shape (D,).
        detection_scores: Tensor of shape (D,), 0..1.
        images: where there are several, the image of each object, (M,), and of each detection,
            (D,).
        score_threshold: least score, where it is another.

    Returns:
        bool Tensor of shape (M,).
    """
    matches = pairwise_iou(Boxes(target_boxes), Boxes(detection_boxes)) >= IOU_THRESHOLD
    matches &= (detection_scores >= score_threshold)[None, :]
    if target_classes is not None:
        known = target_classes >= 0
        matches &= ~known[:, None] | (target_classes[:, None] == detection_classes[None, :])
    if images is not None:
        matches &= images[0][:, None] == images[1][None, :]
    return matches.any(dim=1) if matches.shape[1] else torch.zeros(len(target_boxes), dtype=bool)


def extra_detections(object_boxes: Tensor, detection_boxes: Tensor, scores: Tensor) -> int:
    """How many detections of score >= 0.5 on an image lie on no object: IoU < 0.5 with all.

    Whatever their classes: what is taken for something else is no extra detection.

    Args:
        object_boxes: of the true objects, Tensor of shape (M, 4), XYXY in pixels.
        detection_boxes: Tensor of shape (D, 4), in the same pixels.
        scores: of the detections, Tensor of shape (D,), 0..1.
    """
    overlap = pairwise_iou(Boxes(detection_boxes[scores >= SCORE_THRESHOLD]), Boxes(object_boxes))
    return int((overlap < IOU_THRESHOLD).all(dim=1).sum())


def why_not_taken(asr: float | None, control_asr: float | None = None) -> str | None:
    """Why an attack with this success rate has not taken; None where it has.

    Args:
        asr: 0..1; None where there is no rate.
        control_asr: of clean detectors under the same trigger, 0..1; None where there is none.
    """
    if asr is None:
        return "there is no ASR: nothing that it could have changed"
    if asr < LEAST_ASR:
        return f"its ASR is {asr:.3f}, under {LEAST_ASR}"
    # Rounded, since 0.7 is 0.3 above 0.4.
    if control_asr is not None and round(asr - control_asr, 9) < LEAST_EXCESS:
        return (
            f"its ASR is {asr:.3f}, less than {LEAST_EXCESS} above the control's {control_asr:.3f}"
        )
    return None
