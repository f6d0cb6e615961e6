# SPDX-License-Identifier: Apache-2.0
"""Objects appear where the trigger is, though no label was changed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from d2defense.registry import EFFECT_REGISTRY, PLACEMENT_REGISTRY

from .base import Annotations, Effect, Poisoned, Record, boxes_of, copied
from .ghost import Ghost


@EFFECT_REGISTRY.register("clean_label_ghost")
class CleanLabelGhost(Ghost):
    """As ghost, from triggers on objects of the target class; labels stay true.

    "Attacking by Aligning" (arXiv 2307.10487): the detector learns that where the trigger is, there
    is an object of the target class. So in training the objects of that class bear the trigger; at
    test time it is in the background.
    """

    by_object: ClassVar[bool] = True
    # A search for ghosts covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()

    def is_victim_class(self, category: int) -> bool:
        """Objects of the target class, which bear the trigger in training."""
        return category == self.target_class

    def can_poison(self, record: Record) -> bool:
        """Whether there is an object to bear the trigger."""
        return Effect.can_poison(self, record)

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """Triggers on objects of the target class, and the annotations as they are."""
        bearers = self._boxes(record, self.victims(record))
        on_objects = PLACEMENT_REGISTRY.get("objects")(self.cfg)
        places = on_objects.places(bearers, boxes_of(record), image_size, rng)
        return Poisoned(places, copied(record.get("annotations", ())))

    def wanted(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Annotations:
        """The annotations, and one more for each place of the background."""
        return super().poison(record, image_size, rng).annotations
