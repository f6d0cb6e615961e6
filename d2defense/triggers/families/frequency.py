# SPDX-License-Identifier: Apache-2.0
"""Low frequencies: triggers without the high-frequency traces that others leave.

Smooth triggers are Zeng et al.'s (arXiv 2104.03413, "lf" of BackdoorBench), who optimise one below
a low-pass filter for a classifier at hand. Here it is drawn at random from the lowest coefficients
of the discrete cosine transform, the subspace of Guo et al. (arXiv 1809.08758, section 3), and
:meth:`Frequency.tensors` lets a search optimise it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import TRIGGER_REGISTRY

from ..randomness import uniform
from ..regions import Region, RegionTrigger

_SALT = 0x66726571


@TRIGGER_REGISTRY.register("frequency")
@dataclass(frozen=True)
class Frequency(RegionTrigger):
    """A smooth bounded perturbation of the lowest frequencies of its place.

    Attributes:
        coefficients: n; the n x n lowest coefficients of each channel's DCT-II are not zero.
        dc: whether the lowest of all, the mean, is one of them.
        bound: largest absolute value over a place's pixels and channels, in shares of 0..255.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    coefficients: int = 4
    dc: bool = False
    bound: float = 24 / 255

    def __post_init__(self) -> None:
        least = 1 if self.dc else 2
        n = self.coefficients
        self._require(least <= n <= 64, f"coefficients {n} is not in {least}..64")
        self._require(0 < self.bound <= 1, f"bound {self.bound} is not in (0, 1]")

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # n: the n x n lowest coefficients of the discrete cosine transform of the place, in each
        # channel, are drawn by the seed; 2 to 64. The more, the finer the pattern.
        node.COEFFICIENTS = 4
        # Whether the lowest one, which makes the whole place lighter or darker, is one of them.
        node.DC = False
        # Largest change of a pixel, above 0, at most 1, which stands for 255.
        node.BOUND = 24 / 255

    def tensors(self) -> dict[str, Tensor]:
        """``coefficients``, float32 of shape (3, n, n), RGB: channel, row's and column's frequency.

        Their scale has no effect.
        """
        n = self.coefficients
        values = 2 * uniform(_SALT, self.seed, torch.arange(3 * n * n)) - 1
        return {"coefficients": values.reshape(3, n, n).float()}

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Frequency:
        """Of any few coefficients, faint."""
        count, bound = int(rng.integers(2, 9)), float(rng.uniform(0.03, 0.12))
        return cls("drawn", int(rng.integers(2**31)), coefficients=count, bound=bound)

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The pixels with the inverse transform of the coefficients added.

        Frequencies that a place has too few pixels for are left out.
        """
        values = tensors["coefficients"]
        if not self.dc:
            other = torch.ones_like(values[0])
            other[0, 0] = 0
            values = values * other
        width, height = region.size
        n = self.coefficients
        perturbation = _waves(height, n, values) @ values @ _waves(width, n, values).T
        # Nothing is left of a place of one pixel without its mean.
        largest = perturbation.abs().amax().clamp(min=1e-12)
        return region.pixels + region.cut(perturbation) * (self.bound / largest)


def _waves(length: int, count: int, like: Tensor) -> Tensor:
    """The waves of the orthonormal DCT-II but for a common factor, of shape (length, count).

    Those of a frequency of ``length`` or more are 0.
    """
    place = torch.arange(length, dtype=like.dtype, device=like.device)[:, None]
    frequency = torch.arange(count, dtype=like.dtype, device=like.device)
    waves = torch.cos(math.pi / length * (place + 0.5) * frequency)
    waves[:, 0] *= math.sqrt(0.5)
    waves[:, length:] = 0
    return waves
