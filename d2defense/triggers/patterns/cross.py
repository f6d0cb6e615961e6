# SPDX-License-Identifier: Apache-2.0
"""Two strokes."""

from __future__ import annotations

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from .base import PatchPixels, Pattern


@PATTERN_REGISTRY.register("cross")
class Cross(Pattern):
    """Two strokes in one colour through the patch's middle, nothing beside them."""

    def paint(self, pixels: PatchPixels) -> Tensor:
        """``color`` of the trigger."""
        return self.color(pixels)

    def covers(self, pixels: PatchPixels) -> Tensor:
        """The pixels of both strokes, which are one cell thick."""
        lengths = pixels.lengths[pixels.owner]
        strokes = (lengths.double() / self.trigger.cells).round().clamp(min=1).long()
        strokes = torch.minimum(strokes, lengths)
        offset = torch.stack([pixels.x, pixels.y], dim=1) - (lengths - strokes) // 2
        return ((offset >= 0) & (offset < strokes)).any(1)
