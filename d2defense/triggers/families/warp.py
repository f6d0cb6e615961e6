# SPDX-License-Identifier: Apache-2.0
"""Warping: WaNet (arXiv 2102.10369) on the places of an image instead of all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from d2defense.registry import TRIGGER_REGISTRY

from ..randomness import uniform
from ..regions import Region, RegionTrigger

# Pixels of the paper's images: its strength s moves by s / 32 of half a side, and so does ours,
# whatever the size of a place.
_SIDE = 32
_SALT = 0x77617270
_NOISE_SALT = 0x6E6F6973


@TRIGGER_REGISTRY.register("warp")
@dataclass(frozen=True)
class Warp(RegionTrigger):
    """A smooth elastic flow that bends what is there, without a pixel of its own.

    Attributes:
        grid: k; the flow is given at k x k points and smooth in between.
        strength: s of the paper, for its images of 32 x 32 pixels: the points move by s / 64 of the
            place's width and height, on average over points and directions.
        noise: of the noise mode: how far each of 32 x 32 further points moves at random, in the
            same units; the paper's is 1. The random numbers are each place's own.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    grid: int = 4
    strength: float = 2.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        self._require(2 <= self.grid <= 64, f"grid {self.grid} is not in 2..64")
        for key, value in (("strength", self.strength), ("noise", self.noise)):
            self._require(0 <= value <= _SIDE, f"{key} {value} is not in 0..{_SIDE}")

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # k: the flow is drawn by the seed at k x k points and smooth in between; 2 to 64.
        node.GRID = 4
        # s of the paper, for its images of 32 x 32 pixels, 0 to 32: on average the points move by
        # s / 64 of the place's width and of its height, whatever its size. The paper has 0.5, half
        # a pixel on a place of 64.
        node.STRENGTH = 2.0
        # Noise mode: how far each pixel of 32 x 32 moves besides, at random and otherwise at every
        # place, in the same units; the paper has 1, which it uses on images whose labels stay true.
        node.NOISE = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """``offsets``, float32 of shape (2, k, k): to the right and down, at rows and columns.

        Their scale has no effect.
        """
        return {"offsets": _draw(self.grid, _SALT, self.seed).float()}

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Warp:
        """A flow of any coarseness that can be seen when looked for."""
        grid, strength = int(rng.integers(2, 9)), float(rng.uniform(1, 4))
        return cls("drawn", seed=int(rng.integers(2**31)), grid=grid, strength=strength)

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The pixels that the flow points to, bilinear, never beyond what is visible.

        The flow is that of section 3.3 of the paper: the offsets divided by their mean absolute
        value, times s, between the points by bicubic interpolation.
        """
        if not self.strength and not self.noise:
            return region.pixels
        width, height = region.size
        offsets = tensors["offsets"]
        scale = self.strength / offsets.abs().mean().clamp(min=1e-12)
        flow = _between(offsets * scale, height, width)
        if self.noise:
            drawn = _draw(_SIDE, _NOISE_SALT, *region.key.unbind()).to(flow)
            flow = flow + _between(drawn * self.noise, height, width)
        right, down = region.cut(flow) / _SIDE
        column, row = region.grid()
        (left, top), (rows, columns) = region.offset, region.pixels.shape[-2:]
        # In pixels of the visible part, then from -1, its first pixel, to 1, its last one.
        x = column - left + right * (width - 1) / 2
        y = row - top + down * (height - 1) / 2
        points = torch.stack([2 * x / max(columns - 1, 1) - 1, 2 * y / max(rows - 1, 1) - 1], -1)
        return grid_sample(
            region.pixels[None], points[None], padding_mode="border", align_corners=True
        )[0]


def _draw(side: int, *parts: Tensor | int) -> Tensor:
    """Numbers in [-1, 1), float64 of shape (2, side, side)."""
    device = parts[-1].device if isinstance(parts[-1], Tensor) else None
    index = torch.arange(2 * side * side, device=device)
    return (2 * uniform(*parts, index) - 1).reshape(2, side, side)


def _between(points: Tensor, height: int, width: int) -> Tensor:
    """A field of shape (2, height, width) from points, the outer ones on its outer pixels."""
    size = (height, width)
    return interpolate(points[None], size=size, mode="bicubic", align_corners=True)[0]
