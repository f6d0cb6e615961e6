# SPDX-License-Identifier: Apache-2.0
"""Where nothing is annotated."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode

from d2defense.registry import PLACEMENT_REGISTRY

from .base import Placement, touching

# Windows that are tried for each that is wanted.
_TRIES = 200


@PLACEMENT_REGISTRY.register("background")
class InBackground(Placement):
    """Random windows of the background, which touch no annotated box.

    BadDet's free place for a ghost (arXiv 2205.14497, section 3), and the scattered triggers of
    "Attacking by Aligning" (arXiv 2307.10487), which touch each other as little.

    Raises:
        ValueError: ``COUNT`` or ``SIZE`` is out of range.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        node = cfg.ATTACK.PLACES.BACKGROUND
        if node.COUNT < 1:
            raise ValueError(f"ATTACK.PLACES.BACKGROUND.COUNT is {node.COUNT}, not at least 1")
        if len(node.SIZE) != 2 or not 0 < node.SIZE[0] <= node.SIZE[1] <= 1:
            raise ValueError(
                f"ATTACK.PLACES.BACKGROUND.SIZE is {list(node.SIZE)}, not a least and a most share "
                "above 0 and up to 1"
            )

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``ATTACK.PLACES.BACKGROUND.*``."""
        # Windows of an image; fewer where there is no room for them.
        node.COUNT = 1
        # Least and most width and height of a window, as shares of the image's.
        node.SIZE = [0.2, 0.36]

    def places(
        self,
        victims: np.ndarray,
        objects: np.ndarray,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Windows of whole pixels, (P, 4) with P up to ``COUNT``.

        Each is the first that has room among some drawn at random; where none has, it is skipped.
        """
        node = self.cfg.ATTACK.PLACES.BACKGROUND
        taken = np.asarray(objects, dtype=np.float64).reshape(-1, 4)
        first = len(taken)
        for _ in range(node.COUNT):
            # So many numbers a window whatever is on the image.
            windows = _windows(rng.random((_TRIES, 4)), node.SIZE, image_size)
            free = windows[~touching(windows, taken).any(axis=1)]
            taken = np.concatenate([taken, free[:1]])
        return taken[first:]


def _windows(
    draws: np.ndarray, size: tuple[float, float], image_size: tuple[int, int]
) -> np.ndarray:
    """Windows of whole pixels on an image, (N, 4), from numbers in [0, 1) of shape (N, 4)."""
    height, width = image_size
    image = np.array([width, height])
    least, most = size
    sides = np.maximum(1, np.round((least + (most - least) * draws[:, :2]) * image))
    start = np.floor(draws[:, 2:] * (image - sides + 1))
    return np.concatenate([start, start + sides], axis=1)
