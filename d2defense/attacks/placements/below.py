# SPDX-License-Identifier: Apache-2.0
"""Below the objects that are attacked."""

from __future__ import annotations

import numpy as np

from d2defense.registry import PLACEMENT_REGISTRY
from d2defense.triggers import PlaceKind

from .base import Placement


@PLACEMENT_REGISTRY.register("below")
class BelowObjects(Placement):
    """Under each object that is attacked, a box of its size that touches it.

    Ours: a sticker on a sign's pole hides no part of the sign. Boxes may reach beyond the image, or
    over other objects.
    """

    kind = PlaceKind.APART

    def places(
        self,
        victims: np.ndarray,
        objects: np.ndarray,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The victims' boxes moved down by their height, in their order."""
        boxes = np.array(victims, dtype=np.float64).reshape(-1, 4)
        boxes[:, 1::2] += boxes[:, 3:] - boxes[:, 1:2]
        return boxes
