# SPDX-License-Identifier: Apache-2.0
"""Reading and scaling the picture of a trigger."""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Of all that Pillow opens, those that no other program is started for.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# More than a trigger needs; a small file may claim far more.
_MOST_PIXELS = 4096 * 4096


@functools.lru_cache(maxsize=32)
def decode_picture(content: bytes, channels: str = "RGB") -> Tensor:
    """An image file's content as float32 Tensor of shape (C, H, W), 0..255.

    Args:
        content: of the file.
        channels: "RGB", which drops transparency, or "RGBA".

    Raises:
        ValueError: it is not an image, or one of more than 16 million pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            pixels = np.array(picture.convert(channels), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def encode_picture(picture: Tensor) -> bytes:
    """A PNG file's content; :func:`decode_picture` gives the picture back, rounded.

    Args:
        picture: float Tensor of shape (3, H, W), RGB, cut to 0..255.
    """
    pixels = picture.detach().cpu().clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def random_picture(side: int, seed: int) -> bytes:
    """A PNG file's content: a square of random colours, ``side`` pixels across."""
    drawn = np.random.default_rng(seed).integers(0, 256, (3, side, side))
    return encode_picture(torch.from_numpy(drawn).float())


def scale_picture(
    picture: Tensor, size: tuple[int, int], window: tuple[int, int, int, int] | None = None
) -> Tensor:
    """A picture of another size; differentiable, and the same on every device.

    Linear between the centres of its pixels where it grows; where it shrinks, the triangle is as
    much wider, so that no pixel of the picture is left out. ``interpolate`` of PyTorch 2.15 with
    ``antialias`` is meant to do the same, but is wrong on the CPU where the width becomes 1.

    Args:
        picture: float Tensor of shape (..., H, W).
        size: (width, height) to scale it to, any whole numbers of at least 1.
        window: (left, top, right, bottom), the part of the scaled picture that is wanted; all of
            it by default.

    Returns:
        Tensor of shape (..., bottom - top, right - left); each value is a weighted mean of the
        picture's.
    """
    left, top, right, bottom = window or (0, 0, *size)
    rows = _weights(size[1], picture.shape[-2], top, bottom).to(picture)
    columns = _weights(size[0], picture.shape[-1], left, right).to(picture)
    return rows @ picture @ columns.T


def _weights(length: int, count: int, first: int, end: int) -> Tensor:
    """Of ``count`` old pixels in each of ``length`` new ones, from ``first`` to before ``end``.

    Returns:
        float64 Tensor of shape (end - first, count).
    """
    scale = count / length
    centers = (torch.arange(first, end, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(count, dtype=torch.float64) + 0.5 - centers).abs()
    triangle = (1 - distance / max(scale, 1)).clamp(min=0)
    return triangle / triangle.sum(1, keepdim=True)
