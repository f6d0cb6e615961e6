# SPDX-License-Identifier: Apache-2.0
"""Parts of images, images laid over others, and what a detector then says of the same places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .passes import SeenImage

_IOU = 0.5


def blend(image: Tensor, other: Tensor, opacity: float) -> Tensor:
    """One image with another, resized to it, laid over it.

    Args:
        image: (3, H, W), values 0..255.
        other: (3, h, w), likewise, channels in the same order.
        opacity: of the other, 0..1.

    Returns:
        Tensor like ``image``, rounded where that holds whole numbers.
    """
    above = resized(other, tuple(image.shape[1:])).to(image.device)
    mixed = (1 - opacity) * image.float() + opacity * above
    return mixed.to(image.dtype) if image.is_floating_point() else mixed.round().to(image.dtype)


def crop(image: Tensor, box: Sequence[float]) -> Tensor:
    """A copy of what is in a box, XYXY in pixels, at least one pixel each way."""
    left, top, right, bottom = whole_pixels(box, tuple(image.shape[1:]))
    return image[:, top:bottom, left:right].clone()


def whole_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box, XYXY, in whole pixels of an image (height, width), at least one each way."""
    left, top = (min(max(0, round(box[i])), end - 1) for i, end in ((0, size[1]), (1, size[0])))
    right = max(left + 1, min(round(box[2]), size[1]))
    bottom = max(top + 1, min(round(box[3]), size[0]))
    return left, top, right, bottom


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, h, w) at another size (height, width), float."""
    if tuple(image.shape[1:]) == tuple(size):
        return image.float()
    return F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of the scores of N proposals, from (N, K + 1) to (N,)."""
    scores = logits.softmax(dim=1)
    return -(scores * scores.clamp(min=1e-12).log()).sum(dim=1)


def matched(boxes: Tensor, again: SeenImage, values: Tensor) -> Tensor:
    """Of each box, the value of the surest proposal on it (IoU >= 0.5); 0 where none is.

    Args:
        boxes: (B, 4), XYXY in pixels of the network's input.
        again: what the detector says of an image of the same size.
        values: (N,), of its proposals.
    """
    proposals = again.probe.proposal_boxes
    if not len(boxes) or not len(proposals):
        return torch.zeros(len(boxes), device=boxes.device)
    overlap = pairwise_iou(Boxes(boxes), Boxes(proposals))
    sure = 1 - again.probe.class_logits.softmax(dim=1)[:, -1]
    best = torch.where(overlap >= _IOU, sure[None], -1.0).max(dim=1)
    return torch.where(best.values >= 0, values[best.indices], 0.0)


def confidence(boxes: Tensor, classes: Tensor, again: SeenImage) -> Tensor:
    """Of each detection, the score of the surest one of its class on it (IoU >= 0.5), else 0.

    Args:
        boxes: (B, 4), XYXY in pixels of the network's input.
        classes: int64 (B,).
        again: what the detector says of an image of the same size.
    """
    if not len(boxes) or not len(again.boxes):
        return torch.zeros(len(boxes), device=boxes.device)
    overlap = pairwise_iou(Boxes(boxes), Boxes(again.boxes)) >= _IOU
    same = overlap & (classes[:, None] == again.classes[None])
    return torch.where(same, again.scores[None], 0.0).amax(dim=1)
