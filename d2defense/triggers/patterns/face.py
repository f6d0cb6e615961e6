# SPDX-License-Identifier: Apache-2.0
"""A built-in drawing."""

from __future__ import annotations

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from .base import PatchPixels, Pattern


@PATTERN_REGISTRY.register("face")
class Face(Pattern):
    """A built-in drawing: a round yellow face before a sky that darkens downwards."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """With two eyes and a mouth, alike at every size."""
        width, height = pixels.sides
        u, v = (pixels.x + 0.5) / width, (pixels.y + 0.5) / height
        sky = torch.stack([90 + 60 * u, 190 - 130 * v, 255 - 80 * v], dim=1)
        radius = torch.hypot(u - 0.5, v - 0.5)
        eyes = torch.minimum(torch.hypot(u - 0.35, v - 0.38), torch.hypot(u - 0.65, v - 0.38))
        colors = _paint_where(sky, radius < 0.44, (250, 210, 40))
        colors = _paint_where(colors, eyes < 0.08, (30, 20, 20))
        mouth = ((radius - 0.27).abs() < 0.04) & (v > 0.58)
        return _paint_where(colors, mouth, (170, 20, 30))


def _paint_where(colors: Tensor, where: Tensor, color: tuple[int, int, int]) -> Tensor:
    return torch.where(where[:, None], colors.new_tensor(color), colors)
