# SPDX-License-Identifier: Apache-2.0
"""Patterns of colours without a shape."""

from __future__ import annotations

from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from .base import PatchPixels, Pattern


@PATTERN_REGISTRY.register("solid")
class Solid(Pattern):
    """One colour."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """``color`` of the trigger."""
        return self.color(pixels)


@PATTERN_REGISTRY.register("random_color")
class RandomColor(Pattern):
    """One random colour an object."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """The same for all pixels of an object."""
        return pixels.random_colors()


@PATTERN_REGISTRY.register("noise")
class Noise(Pattern):
    """One random colour a pixel."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """Another one for each pixel."""
        return pixels.random_colors(pixels.y, pixels.x)
