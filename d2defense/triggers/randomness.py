# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on what they are for alone: the same on every device and batching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# 2^32 divided by the golden ratio: sets a chain of zeros apart from zero.
_INCREMENT = 0x9E3779B9


def hash32(*parts: Tensor | int) -> Tensor:
    """A hash of whole numbers, evenly spread over 32 bits.

    Each part goes through the finalizer of MurmurHash3 (A. Appleby, public domain) together with
    what came before it. A counter-based generator: no state, so any pixel can be computed alone.

    Args:
        parts: int64 Tensors of shapes that broadcast, or numbers; the lower 32 bits of each count.

    Returns:
        int64 Tensor, values 0 .. 2^32 - 1.
    """
    state: Tensor = torch.zeros((), dtype=torch.int64)
    for part in parts:
        part = part & _MASK
        if isinstance(part, Tensor):
            state = state.to(part.device)
        state = _finalize(((state + _INCREMENT) & _MASK) ^ part)
    return state


def uniform(*parts: Tensor | int) -> Tensor:
    """float64 Tensor in [0, 1) from :func:`hash32` of the parts."""
    return hash32(*parts).double() / (_MASK + 1)


def object_keys(seed: int, image_seeds: Sequence[int], image: Tensor, counts: Tensor) -> Tensor:
    """Whole numbers that tell every object of a batch of images from every other.

    Args:
        seed: of a trigger.
        image_seeds: G numbers, one an image.
        image: int64 Tensor of shape (M,): which image an object lies on, rising.
        counts: int64 Tensor of shape (G,): objects of each image.

    Returns:
        int64 Tensor of shape (M, 4): the seed, both halves of the image's seed, and the number of
        the object on its image.
    """
    first = counts.cumsum(0) - counts
    halves = torch.tensor([[s & _MASK, (s >> 32) & _MASK] for s in image_seeds])[image]
    number = torch.arange(len(image)) - first[image]
    return torch.cat([torch.full((len(image), 1), seed & _MASK), halves, number[:, None]], dim=1)


def place_keys(seed: int, image_seeds: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
    """:func:`object_keys` image by image: for each an int64 Tensor of shape (M_g, 4).

    Args:
        seed: of a trigger.
        image_seeds: one an image.
        counts: places of each image.
    """
    sizes = torch.tensor(list(counts), dtype=torch.int64)
    image = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return list(object_keys(seed, image_seeds, image, sizes).split(list(counts)))


def _finalize(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = _multiply(x, 0x85EBCA6B)
    x = x ^ (x >> 13)
    x = _multiply(x, 0xC2B2AE35)
    return x ^ (x >> 16)


def _multiply(x: Tensor, constant: int) -> Tensor:
    """The lower 32 bits of a product, in two steps that stay inside int64."""
    high = (x * (constant >> 16)) & 0xFFFF
    return (x * (constant & 0xFFFF) + (high << 16)) & _MASK
