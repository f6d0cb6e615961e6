# SPDX-License-Identifier: Apache-2.0
"""Which true objects a detector found: the plain baseline under every other statistic."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

SCORE_THRESHOLD = 0.5
IOU_THRESHOLD = 0.5
# A detector whose objects vanish less often than this is not taken for a backdoored one.
SUCCESSFUL_ASR = 0.5


def found_objects(
    target_boxes: Tensor,
    target_classes: Tensor | None,
    detection_boxes: Tensor,
    detection_classes: Tensor,
    detection_scores: Tensor,
    images: tuple[Tensor, Tensor] | None = None,
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

    Returns:
        bool Tensor of shape (M,).
    """
    matches = pairwise_iou(Boxes(target_boxes), Boxes(detection_boxes)) >= IOU_THRESHOLD
    matches &= (detection_scores >= SCORE_THRESHOLD)[None, :]
    if target_classes is not None:
        known = target_classes >= 0
        matches &= ~known[:, None] | (target_classes[:, None] == detection_classes[None, :])
    if images is not None:
        matches &= images[0][:, None] == images[1][None, :]
    return matches.any(dim=1) if matches.shape[1] else torch.zeros(len(target_boxes), dtype=bool)


def attack_success_rate(found_clean: Tensor, found_triggered: Tensor) -> float | None:
    """ASR: of the objects found without the trigger, the share no longer found with it.

    Args:
        found_clean: bool Tensor of shape (M,).
        found_triggered: bool Tensor of shape (M,), the same objects.

    Returns:
        A share in 0..1; None where nothing was found without the trigger.
    """
    total = int(found_clean.sum())
    return int((found_clean & ~found_triggered).sum()) / total if total else None


def attack_succeeded(asr: float | None) -> bool | None:
    """Whether an attack with this success rate has worked: from :data:`SUCCESSFUL_ASR` on.

    Args:
        asr: of :func:`attack_success_rate`.

    Returns:
        None where there is no rate.
    """
    return None if asr is None else asr >= SUCCESSFUL_ASR
