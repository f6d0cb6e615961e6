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
    "checkerboard",
    "vertical_stripes",
    "horizontal_stripes",
    "sinusoid",
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
    if pattern == "solid":
        return first
    if pattern == "random_color":
        return _color(hash32(_SALT, *keys.unbind(1)))[owner]
    if pattern == "noise":
        return _color(hash32(_SALT, *keys[owner].unbind(1), y, x))
    width, height = lengths[owner].unbind(1)
    if pattern == "image":
        return _sample(trigger.image, owner, x, y, lengths)
    second = torch.tensor([trigger.second_color], dtype=torch.float32, device=x.device)
    column, row = x * trigger.cells // width, y * trigger.cells // height
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
