# SPDX-License-Identifier: Apache-2.0
"""Patterns of fields, stripes and waves; ``cells`` of the trigger says how many."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from .base import PatchPixels, Pattern


@PATTERN_REGISTRY.register("mosaic")
class Mosaic(Pattern):
    """One random colour a field."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """The same for all pixels of a field."""
        column, row = self.cell(pixels)
        return pixels.random_colors(row, column)


@PATTERN_REGISTRY.register("checkerboard")
class Checkerboard(Pattern):
    """Fields of two colours in turn."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """The left top field is in ``color``."""
        column, row = self.cell(pixels)
        return self.blend((column + row) % 2, pixels)


@PATTERN_REGISTRY.register("vertical_stripes")
class VerticalStripes(Pattern):
    """Upright stripes of two colours in turn."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """The leftmost one is in ``color``."""
        column, _ = self.cell(pixels)
        return self.blend(column % 2, pixels)


@PATTERN_REGISTRY.register("horizontal_stripes")
class HorizontalStripes(Pattern):
    """Level stripes of two colours in turn."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """The topmost one is in ``color``."""
        _, row = self.cell(pixels)
        return self.blend(row % 2, pixels)


@PATTERN_REGISTRY.register("sinusoid")
class Wave(Pattern):
    """A wave from left to right between two colours (SIG, arXiv 1902.11237)."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """``cells`` of the trigger are half waves."""
        width, _ = pixels.sides
        phase = math.pi * self.trigger.cells * (pixels.x.double() + 0.5) / width
        return self.blend(((1 - torch.sin(phase)) / 2).float(), pixels)
