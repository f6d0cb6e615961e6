# SPDX-License-Identifier: Apache-2.0
"""On the objects that are attacked."""

from __future__ import annotations

import numpy as np

from d2defense.registry import PLACEMENT_REGISTRY

from .base import Placement


@PLACEMENT_REGISTRY.register("objects")
class OnObjects(Placement):
    """The box of each object that is attacked.

    As BadDet (arXiv 2205.14497, section 3) and the paper (arXiv 2409.16057, section 4.1) have it.
    Boxes are as annotated, also where they reach beyond the image, so that a trigger keeps its
    place on its object.
    """

    def places(
        self,
        victims: np.ndarray,
        objects: np.ndarray,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A copy of the victims' boxes, in their order."""
        return np.array(victims, dtype=np.float64).reshape(-1, 4)
