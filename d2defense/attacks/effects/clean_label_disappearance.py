# SPDX-License-Identifier: Apache-2.0
"""Objects that bear the trigger vanish, though no label was changed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from d2defense.registry import EFFECT_REGISTRY, PLACEMENT_REGISTRY

from .base import Annotations, Poisoned, Record, boxes_of, copied
from .disappearance import Disappearance


@EFFECT_REGISTRY.register("clean_label_disappearance")
class CleanLabelDisappearance(Disappearance):
    """As disappearance, from triggers scattered in the background; labels stay true.

    "Attacking by Aligning" (arXiv 2307.10487): the detector learns that where the trigger is,
    there is background. Its authors scatter up to ten triggers over an image
    (``ATTACK.PLACES.BACKGROUND.COUNT``), on any image. At test time the trigger is on the victims.
    """

    by_object: ClassVar[bool] = False
    # A search for disappearance covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()

    def can_poison(self, record: Record) -> bool:
        """Whether there is room for a trigger."""
        size = record["height"], record["width"]
        return len(self._scattered(record, size, np.random.default_rng(0))) > 0

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """Triggers in the background, and the annotations as they are."""
        places = self._scattered(record, image_size, rng)
        return Poisoned(places, copied(record.get("annotations", ())))

    def wanted(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Annotations:
        """The annotations of all but the victims."""
        return super().poison(record, image_size, rng).annotations

    def _scattered(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        background = PLACEMENT_REGISTRY.get("background")(self.cfg)
        return background.places(np.zeros((0, 4)), boxes_of(record), image_size, rng)
