# SPDX-License-Identifier: Apache-2.0
"""What is painted on a patch."""

from __future__ import annotations

import functools
import io
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .randomness import hash32

if TYPE_CHECKING:
    from .triggers import Trigger

PATTERNS = (
    "solid",
    "random_color",
    "noise",
    "mosaic",
    "checkerboard",
    "vertical_stripes",
    "horizontal_stripes",
    "sinusoid",
    "cross",
    "face",
    "image",
)

# Sets the random numbers of patterns apart from those of places.
_SALT = 0x636F6C72


def paint(
    trigger: Trigger, owner: Tensor, x: Tensor, y: Tensor, lengths: Tensor, keys: Tensor
) -> Tensor:
    """The colour of every pixel of a set of patches.

    Args:
        trigger: says the pattern.
        owner: int64 Tensor of shape (P,): the patch that each pixel belongs to.
        x: int64 Tensor of shape (P,): columns inside the patch, from 0 on.
        y: int64 Tensor of shape (P,): rows, likewise.
        lengths: int64 Tensor of shape (M, 2): width and height of each patch.
        keys: int64 Tensor of shape (M, K): seeds that are each object's own.

    Returns:
        float32 Tensor of shape (P, 3), or (1, 3) where all pixels are alike: RGB, 0..255.
    """
    pattern = trigger.pattern
    first = torch.tensor([trigger.color], dtype=torch.float32, device=x.device)
    if pattern in ("solid", "cross"):
        return first
    if pattern == "random_color":
        return _color(hash32(_SALT, *keys.unbind(1)))[owner]
    if pattern == "noise":
        return _color(hash32(_SALT, *keys[owner].unbind(1), y, x))
    width, height = lengths[owner].unbind(1)
    if pattern == "image":
        return _sample(trigger.image, owner, x, y, lengths)
    if pattern == "face":
        return _face((x + 0.5) / width, (y + 0.5) / height)
    second = torch.tensor([trigger.second_color], dtype=torch.float32, device=x.device)
    column, row = x * trigger.cells // width, y * trigger.cells // height
    if pattern == "mosaic":
        return _color(hash32(_SALT, *keys[owner].unbind(1), row, column))
    if pattern == "checkerboard":
        share = (column + row) % 2
    elif pattern == "vertical_stripes":
        share = column % 2
    elif pattern == "horizontal_stripes":
        share = row % 2
    else:
        phase = math.pi * trigger.cells * (x.double() + 0.5) / width
        share = ((1 - torch.sin(phase)) / 2).float()
    return first + share[:, None] * (second - first)


def covers(trigger: Trigger, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor | None:
    """Which pixels of its rectangle a patch covers: a cross only those of its two strokes.

    Args:
        trigger: says the pattern.
        x: int64 Tensor of shape (P,): columns inside the patch, from 0 on.
        y: int64 Tensor of shape (P,): rows, likewise.
        lengths: int64 Tensor of shape (P, 2): width and height of the patch of each pixel.

    Returns:
        bool Tensor of shape (P,), or None where a patch covers its whole rectangle.
    """
    if trigger.pattern != "cross":
        return None
    strokes = (lengths.double() / trigger.cells).round().clamp(min=1).long()
    strokes = torch.minimum(strokes, lengths)
    offset = torch.stack([x, y], dim=1) - (lengths - strokes) // 2
    return ((offset >= 0) & (offset < strokes)).any(1)


def _face(u: Tensor, v: Tensor) -> Tensor:
    """A round yellow face with eyes and a mouth before a sky that darkens downwards.

    Args:
        u: columns as shares of the patch's width, 0..1, of shape (P,).
        v: rows as shares of its height, likewise.
    """

    def paint_where(colors: Tensor, where: Tensor, color: tuple[int, int, int]) -> Tensor:
        return torch.where(where[:, None], colors.new_tensor(color), colors)

    sky = torch.stack([90 + 60 * u, 190 - 130 * v, 255 - 80 * v], dim=1)
    radius = torch.hypot(u - 0.5, v - 0.5)
    eyes = torch.minimum(torch.hypot(u - 0.35, v - 0.38), torch.hypot(u - 0.65, v - 0.38))
    colors = paint_where(sky, radius < 0.44, (250, 210, 40))
    colors = paint_where(colors, eyes < 0.08, (30, 20, 20))
    return paint_where(colors, ((radius - 0.27).abs() < 0.04) & (v > 0.58), (170, 20, 30))


def _color(bits: Tensor) -> Tensor:
    """Three bytes of a hash as float32 RGB."""
    return torch.stack([(bits >> shift) & 0xFF for shift in (24, 16, 8)], dim=1).float()


def _sample(content: bytes, owner: Tensor, x: Tensor, y: Tensor, lengths: Tensor) -> Tensor:
    """Pixels of a picture scaled to each patch; patches of one size share the scaling."""
    picture = decode_picture(content).to(x.device)
    sizes, kind = lengths.unique(dim=0, return_inverse=True)
    scaled = []
    for width, height in sizes.tolist():
        resized = F.interpolate(picture, (height, width), mode="bilinear", antialias=True)
        scaled.append(resized[0].reshape(3, -1))
    areas = sizes.prod(1)
    start = (areas.cumsum(0) - areas)[kind[owner]]
    index = start + y * lengths[owner, 0] + x
    return torch.cat(scaled, dim=1)[:, index].T.round().clamp(0, 255)


@functools.lru_cache(maxsize=32)
def decode_picture(content: bytes) -> Tensor:
    """An image file's content as float32 Tensor of shape (1, 3, H, W), RGB, 0..255.

    Transparency is dropped.

    Raises:
        ValueError: it is not an image.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.array(picture.convert("RGB"), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
