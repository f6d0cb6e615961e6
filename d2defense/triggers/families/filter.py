# SPDX-License-Identifier: Apache-2.0
"""Colour filters, as social media have them: the kind of FaceHack (arXiv 2006.11623)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import TRIGGER_REGISTRY

from ..checks import is_number
from ..regions import Region, RegionTrigger

Row = tuple[float, float, float, float]
Matrix = tuple[Row, Row, Row]

_SAME: Matrix = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))

#: Matrices by name, as :attr:`Filter.matrix` has them. "sepia" and "gray" are
#: ``sepia(1)`` and ``grayscale(1)`` of the W3C's Filter Effects Module Level 1.
FILTERS: dict[str, Matrix] = {
    "none": _SAME,
    "sepia": (
        (0.393, 0.769, 0.189, 0.0),
        (0.349, 0.686, 0.168, 0.0),
        (0.272, 0.534, 0.131, 0.0),
    ),
    "gray": ((0.2126, 0.7152, 0.0722, 0.0),) * 3,
    # No round numbers in the rest: halves, which devices may round either way, are rare so.
    # Pale and yellowish, without black, like an old print.
    "vintage": (
        (0.653, 0.147, 0.049, 0.151),
        (0.102, 0.651, 0.053, 0.119),
        (0.101, 0.149, 0.397, 0.123),
    ),
    "cool": (
        (0.753, 0.0, 0.0, 0.0),
        (0.0, 0.947, 0.051, 0.0),
        (0.0, 0.102, 0.997, 0.101),
    ),
    "warm": (
        (0.997, 0.101, 0.0, 0.103),
        (0.0, 0.947, 0.0, 0.031),
        (0.0, 0.0, 0.703, 0.0),
    ),
}
# How steep a tone curve may be.
_STEEPEST = 8.0


@TRIGGER_REGISTRY.register("filter")
@dataclass(frozen=True)
class Filter(RegionTrigger):
    """Other colours over the place: a colour matrix, then a tone curve (FaceHack's kind).

    A pixel (r, g, b) in 0..1 becomes ``cut(matrix (r, g, b, 1)) ** gamma``, mixed with what was
    there.

    Attributes:
        name: what results call it.
        seed: not used; all pixels of one colour get one other colour.
        filter: name in :data:`FILTERS` of the matrix that is applied first.
        matrix: applied to what comes out of it: red, green and blue from red, green, blue and 1.
        gamma: of red, green and blue; below 1 lighter, above 1 darker.
        strength: 1 replaces the colours, 0 changes nothing.
    """

    filter: str = "sepia"
    matrix: Matrix = _SAME
    gamma: tuple[float, float, float] = (1.0, 1.0, 1.0)
    strength: float = 1.0

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # "sepia", "gray", "vintage", "cool", "warm"; "none": MATRIX and GAMMA alone.
        node.FILTER = "sepia"
        # A matrix of one's own, applied after FILTER: a row each for red, green and blue, of what
        # it takes from red, green and blue, and what is added; colours are 0 to 1.
        node.MATRIX = [list(row) for row in _SAME]
        # Exponents of red, green and blue after that, 1/8 to 8: below 1 lighter, above 1 darker.
        node.GAMMA = [1.0, 1.0, 1.0]
        # 1 replaces the colours, 0 changes nothing.
        node.STRENGTH = 1.0

    def __post_init__(self) -> None:
        names = ", ".join(FILTERS)
        self._require(self.filter in FILTERS, f"filter {self.filter!r} is none of {names}")
        self._require(
            _is_row(self.matrix, 3) and all(_is_row(row, 4) for row in self.matrix),
            f"matrix {self.matrix} is not three rows of four numbers",
        )
        numbers = [value for row in self.matrix for value in row]
        self._require(
            all(is_number(value, -10, 10) for value in numbers),
            f"matrix {self.matrix} has numbers that are not in -10..10",
        )
        self._require(
            _is_row(self.gamma, 3)
            and all(is_number(value, 1 / _STEEPEST, _STEEPEST) for value in self.gamma),
            f"gamma {self.gamma} is not three numbers in 1/8..8",
        )
        self._require(is_number(self.strength, 0, 1), f"strength {self.strength} is not in 0..1")

    def tensors(self) -> dict[str, Tensor]:
        """What is done to a colour, RGB.

        ``matrix``, float32 of shape (3, 4), both matrices in one, and ``gamma``, of shape (3,), cut
        to 1/8..8 on use.
        """
        first = torch.tensor([*FILTERS[self.filter], (0.0, 0.0, 0.0, 1.0)], dtype=torch.float64)
        both = torch.tensor(self.matrix, dtype=torch.float64) @ first
        return {"matrix": both.float(), "gamma": torch.tensor(self.gamma, dtype=torch.float32)}

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Filter:
        """A filter of those that come along, with a tone curve of its own for each colour."""
        names = sorted(FILTERS)
        gamma = tuple(float(each) for each in np.exp(rng.uniform(-0.5, 0.5, 3)))
        name = names[rng.integers(len(names))]
        return cls("drawn", filter=name, gamma=gamma, strength=float(rng.uniform(0.2, 0.8)))

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The pixels through the filter."""
        matrix = tensors["matrix"][:, :, None, None]
        mixed = (matrix[:, :3] * region.pixels).sum(1) + matrix[:, 3]
        curved = _power(mixed.clamp(0, 1), tensors["gamma"].clamp(1 / _STEEPEST, _STEEPEST))
        return self.strength * curved + (1 - self.strength) * region.pixels


def _is_row(value: object, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length


def _power(colors: Tensor, gamma: Tensor) -> Tensor:
    """``colors`` of shape (3, h, w) to the power of ``gamma``, with a gradient of 0 at black.

    It is infinite there where gamma is below 1.
    """
    black = colors <= 0
    return torch.where(black, 0.0, torch.where(black, 1.0, colors) ** gamma[:, None, None])
