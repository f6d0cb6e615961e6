# SPDX-License-Identifier: Apache-2.0
"""A picture with a mask, put on places of images, with gradient to both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2defense.detection import CleanImage


def blend(
    images: Sequence[Tensor], places: Sequence[Tensor], mask: Tensor, pattern: Tensor
) -> list[dict[str, Any]]:
    """Inputs of a detector: images with ``(1 - mask) * pixels + mask * pattern`` at places.

    Args:
        images: G Tensors of shape (3, H, W), values 0..255.
        places: G Tensors of shape (P, 4), XYXY in pixels; what lies outside of the image is cut.
        mask: Tensor of shape (1, S, S), 0..1, scaled to each place.
        pattern: Tensor of shape (3, S, S), 0..255, likewise.

    Returns:
        G dicts with ``image``.
    """
    inputs = []
    for image, boxes in zip(images, places, strict=True):
        stamped = image.to(mask)
        for x1, y1, x2, y2 in boxes.round().int().tolist():
            width, height = max(1, x2 - x1), max(1, y2 - y1)
            size = (height, width)
            scaled = F.interpolate(torch.cat([mask, pattern])[None], size, mode="bilinear")[0]
            left, top = max(0, -x1), max(0, -y1)
            right = min(width, image.shape[2] - x1)
            bottom = min(height, image.shape[1] - y1)
            if right <= left or bottom <= top:
                continue
            part = scaled[:, top:bottom, left:right]
            rows, columns = slice(y1 + top, y1 + bottom), slice(x1 + left, x1 + right)
            stamped = stamped.clone()
            under = stamped[:, rows, columns]
            stamped[:, rows, columns] = under + part[:1] * (part[1:] - under)
        inputs.append({"image": stamped})
    return inputs


def centred(boxes: Tensor, width: float, height: float) -> Tensor:
    """Rectangles of one size in the middle of boxes, (M, 4)."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = boxes.new_tensor([width, height]) / 2
    return torch.cat([middle - half, middle + half], dim=1)


def objects_of(
    images: Sequence[CleanImage], wanted: int | None = None, but: int | None = None
) -> list[tuple[CleanImage, Tensor]]:
    """Images with the boxes of some of their objects; those without any are left out.

    Args:
        images: clean.
        wanted: class of the objects; any if None.
        but: class that is left out.
    """
    found = []
    for image in images:
        keep = image.classes >= 0
        if wanted is not None:
            keep &= image.classes == wanted
        if but is not None:
            keep &= image.classes != but
        if keep.any():
            found.append((image, image.boxes[keep]))
    return found
