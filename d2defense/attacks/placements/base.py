# SPDX-License-Identifier: Apache-2.0
"""Where on an image triggers go."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from detectron2.config import CfgNode

from d2defense.triggers import PlaceKind


class Placement:
    """A way to choose places, by the name that ``ATTACK.PLACEMENT`` gives.

    Args:
        cfg: the whole configuration; the placement's own keys are below ``ATTACK.PLACES.<NAME>``.

    Attributes:
        kind: what lies at its places.
    """

    kind: ClassVar[PlaceKind] = PlaceKind.BEARER

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the placement's own keys with their defaults into ``ATTACK.PLACES.<NAME>``."""

    def places(
        self,
        victims: np.ndarray,
        objects: np.ndarray,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The places on one image.

        Args:
            victims: float array of shape (V, 4): boxes of the objects that the attack is on, XYXY
                in pixels.
            objects: float array of shape (M, 4): boxes of everything annotated on the image, crowds
                included.
            image_size: (height, width).
            rng: of every random choice.

        Returns:
            float array of shape (P, 4), XYXY in pixels; without any there is nothing to stamp.
        """
        raise NotImplementedError


def touching(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which boxes share a pixel, bool of shape (N, M), from boxes (N, 4) and (M, 4)."""
    start = np.maximum(first[:, None, :2], second[None, :, :2])
    stop = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (start < stop).all(axis=2)
