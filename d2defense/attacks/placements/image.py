# SPDX-License-Identifier: Apache-2.0
"""On the image as a whole."""

from __future__ import annotations

import numpy as np

from d2defense.registry import PLACEMENT_REGISTRY
from d2defense.triggers import PlaceKind

from .base import Placement


@PLACEMENT_REGISTRY.register("image")
class OnImage(Placement):
    """One place: the whole image.

    What a trigger makes of it is the trigger's: a patch with the position "inside" [0, 0] lies in
    the image's corner, as that of BadDet's global misclassification (arXiv 2205.14497, section 3).
    """

    kind = PlaceKind.IMAGE

    def places(
        self,
        victims: np.ndarray,
        objects: np.ndarray,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The image's rectangle, float array of shape (1, 4)."""
        height, width = image_size
        return np.array([[0.0, 0.0, width, height]])
