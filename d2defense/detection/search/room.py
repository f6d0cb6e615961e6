# SPDX-License-Identifier: Apache-2.0
"""Images with room for what a trigger may show far from where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..images import CleanImage


def with_room(images: Sequence[CleanImage]) -> list[CleanImage]:
    """The same images, every second of them, by its seed, without its objects.

    A ghost that is to appear so far from its trigger seldom finds the place free among objects. The
    others keep theirs, since a backdoor may ask for some.

    Args:
        images: clean.
    """
    return [emptied(each) if each.seed % 2 else each for each in images]


def emptied(image: CleanImage) -> CleanImage:
    """An image whose objects are painted over with what surrounds them.

    Args:
        image: clean.
    """
    pixels = image.image.float()
    height, width = pixels.shape[1:]
    for x1, y1, x2, y2 in image.boxes.tolist():
        left, top = max(0, math.floor(x1) - 1), max(0, math.floor(y1) - 1)
        right, bottom = min(width, math.ceil(x2) + 1), min(height, math.ceil(y2) + 1)
        if right > left and bottom > top:
            pixels[:, top:bottom, left:right] = _between(pixels, left, top, right, bottom)
    return replace(
        image,
        image=pixels.round().to(image.image.dtype),
        boxes=image.boxes[:0],
        classes=image.classes[:0],
    )


def _between(pixels: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """What lies between the lines that border a rectangle, blended across and along, (3, h, w)."""
    height, width = pixels.shape[1:]
    columns = [each for each in (left - 1, right) if 0 <= each < width]
    rows = [each for each in (top - 1, bottom) if 0 <= each < height]
    blends = []
    if columns:
        first, last = pixels[:, top:bottom, columns[0]], pixels[:, top:bottom, columns[-1]]
        blends.append(torch.lerp(first[..., None], last[..., None], _shares(right - left)))
    if rows:
        first, last = pixels[:, rows[0], left:right], pixels[:, rows[-1], left:right]
        blends.append(torch.lerp(first[:, None], last[:, None], _shares(bottom - top)[:, None]))
    if not blends:
        # The object is all of the image.
        return pixels[:, top:bottom, left:right].mean(dim=(1, 2), keepdim=True)
    return torch.stack(blends).mean(dim=0)


def _shares(count: int) -> Tensor:
    """Weights of the last line, of each of the lines between two."""
    return torch.arange(1, count + 1) / (count + 1)
