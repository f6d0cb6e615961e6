# SPDX-License-Identifier: Apache-2.0
"""A picture of one's own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from ..pictures import decode_picture, scale_picture
from .base import PatchPixels, Pattern


@PATTERN_REGISTRY.register("image")
class Picture(Pattern):
    """A picture, scaled to the patch."""

    needs_picture: ClassVar[bool] = True

    def paint(self, pixels: PatchPixels) -> Tensor:
        """Its pixels; patches of one size share the scaling."""
        picture = decode_picture(self.trigger.image).to(pixels.x.device)
        sizes, kind = pixels.lengths.unique(dim=0, return_inverse=True)
        scaled = []
        for width, height in sizes.tolist():
            scaled.append(scale_picture(picture, (width, height)).reshape(3, -1))
        areas = sizes.prod(1)
        start = (areas.cumsum(0) - areas)[kind[pixels.owner]]
        width, _ = pixels.sides
        index = start + pixels.y * width + pixels.x
        return torch.cat(scaled, dim=1)[:, index].T.round().clamp(0, 255)
