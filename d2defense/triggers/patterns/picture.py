# SPDX-License-Identifier: Apache-2.0
"""A picture of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from ..pictures import decode_picture, encode_picture, scale_picture
from .base import PatchPixels, Pattern


@PATTERN_REGISTRY.register("image")
class Picture(Pattern):
    """A picture, scaled to the patch."""

    needs_picture: ClassVar[bool] = True

    def paint(self, pixels: PatchPixels) -> Tensor:
        """Its pixels; patches of one size share the scaling."""
        given = self.given.get("picture")
        if given is None:
            picture = decode_picture(self.trigger.image).to(pixels.x.device)
        else:
            picture = 255 * given.clamp(0, 1)
        sizes, kind = pixels.lengths.unique(dim=0, return_inverse=True)
        scaled = []
        for width, height in sizes.tolist():
            scaled.append(scale_picture(picture, (width, height)).reshape(3, -1))
        areas = sizes.prod(1)
        start = (areas.cumsum(0) - areas)[kind[pixels.owner]]
        width, _ = pixels.sides
        index = start + pixels.y * width + pixels.x
        colors = torch.cat(scaled, dim=1)[:, index].T
        # Rounding has no gradient.
        return colors.round().clamp(0, 255) if given is None else colors

    def tensors(self) -> dict[str, Tensor]:
        """``picture``: float32 of shape (3, h, w), RGB."""
        return {"picture": decode_picture(self.trigger.image) / 255}

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The picture as a PNG."""
        return {"image": encode_picture(255 * tensors["picture"])}
