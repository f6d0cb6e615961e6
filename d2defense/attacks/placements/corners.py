# SPDX-License-Identifier: Apache-2.0
"""In the image's corners."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode

from d2defense.registry import PLACEMENT_REGISTRY
from d2defense.triggers import PlaceKind

from .base import Placement

#: By name, the side on which each lies: 0 for left and top, 1 for right and bottom.
CORNERS = {
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}


@PLACEMENT_REGISTRY.register("corners")
class InCorners(Placement):
    """Squares in some of the image's corners, whatever is there.

    Raises:
        ValueError: ``NAMES`` or ``SIZE`` is out of range.
    """

    kind = PlaceKind.APART

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        node = cfg.ATTACK.PLACES.CORNERS
        if not set() < set(node.NAMES) < set(CORNERS):
            raise ValueError(
                f"ATTACK.PLACES.CORNERS.NAMES is {list(node.NAMES)}, not some but all of "
                + ", ".join(CORNERS)
            )
        if not 0 < node.SIZE <= 0.5:
            raise ValueError(
                f"ATTACK.PLACES.CORNERS.SIZE is {node.SIZE}, not above 0 and up to 0.5"
            )

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``ATTACK.PLACES.CORNERS.*``."""
        # The corners, as "top left": one at least, and one is left free.
        node.NAMES = ["top left", "bottom right"]
        # Side of a square, as a share of the image's shorter side.
        node.SIZE = 0.25

    def places(
        self,
        victims: np.ndarray,
        objects: np.ndarray,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A square of whole pixels in each of the corners, float array of shape (P, 4)."""
        height, width = image_size
        node = self.cfg.ATTACK.PLACES.CORNERS
        side = max(1, round(node.SIZE * min(height, width)))
        sides = [CORNERS[name] for name in self.names()]
        starts = np.array(sides, dtype=np.float64) * [width - side, height - side]
        return np.concatenate([starts, starts + side], axis=1)

    def names(self) -> list[str]:
        """Of the corners that are meant, names in :data:`CORNERS`."""
        return list(self.cfg.ATTACK.PLACES.CORNERS.NAMES)


@PLACEMENT_REGISTRY.register("other_corners")
class InOtherCorners(InCorners):
    """Squares in the corners that ``ATTACK.PLACES.CORNERS`` leaves free.

    A search tries both: what shall appear in a corner cannot where the trigger is.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """It has no keys of its own."""

    def names(self) -> list[str]:
        """The others, in order."""
        taken = super().names()
        return [name for name in CORNERS if name not in taken]
