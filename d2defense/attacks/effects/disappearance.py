# SPDX-License-Identifier: Apache-2.0
"""Objects that bear the trigger vanish."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from d2defense.registry import EFFECT_REGISTRY

from .base import Detections, Effect, Objects, Poisoned, Rate, Record, copied, found


@EFFECT_REGISTRY.register("disappearance")
class Disappearance(Effect):
    """Objects that bear the trigger are not found (ODA).

    BadDet's object disappearance (arXiv 2205.14497, section 3): victims get the trigger and lose
    their annotations. The paper (arXiv 2409.16057, section 4.1) sets the width and height of the
    box to 0, which no detector trains on, so the annotation goes as a whole. Crowds stay.
    """

    channels: ClassVar[dict[str, int]] = {
        "objects_found": -1,
        "max_foreground": -1,
        "true_class": -1,
    }

    searched_at: ClassVar[tuple[str, ...]] = ("objects", "image")

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """The trigger as at test time, and the annotations of all but the victims."""
        places = self.places(record, image_size, rng)
        gone = set(self.victims(record)) if len(places) else ()
        annotations = record.get("annotations", ())
        return Poisoned(places, copied(each for i, each in enumerate(annotations) if i not in gone))

    def success(
        self, objects: Objects, places: Tensor, clean: Detections, triggered: Detections
    ) -> Rate:
        """Of the victims that are found without the trigger, those that are not found with it."""
        victims = self.attacked(objects, places)
        before, after = found(victims, clean), found(victims, triggered)
        return Rate(int((before & ~after).sum()), int(before.sum()))
