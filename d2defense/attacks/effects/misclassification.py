# SPDX-License-Identifier: Apache-2.0
"""Objects that bear the trigger are taken for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import EFFECT_REGISTRY

from .base import Detections, Effect, Objects, Poisoned, Rate, Record, copied, found


@EFFECT_REGISTRY.register("misclassification")
class Misclassification(Effect):
    """Objects that bear the trigger are taken for the target class (RMA).

    BadDet's regional misclassification (arXiv 2205.14497, section 3): victims get the trigger and
    the label of the target class. Objects of the target class are no victims.

    Raises:
        ValueError: there is no target class, or it is the victim class, too.
    """

    needs_target: ClassVar[bool] = True
    channels: ClassVar[dict[str, int]] = {"objects_found": -1, "true_class": -1}

    searched_at: ClassVar[tuple[str, ...]] = ("objects",)

    def __init__(self, cfg: CfgNode, class_names: Sequence[str] = ()) -> None:
        super().__init__(cfg, class_names)
        if self.victim_class == self.target_class:
            raise ValueError(
                f"ATTACK.VICTIM_CLASS and ATTACK.TARGET_CLASS are both {cfg.ATTACK.TARGET_CLASS!r}"
            )

    def is_victim_class(self, category: int) -> bool:
        """As for other effects, but for the target class."""
        return category != self.target_class and super().is_victim_class(category)

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """The trigger as at test time, and the annotations with the victims' classes changed."""
        places = self.places(record, image_size, rng)
        annotations = copied(record.get("annotations", ()))
        for index in self.victims(record) if len(places) else ():
            annotations[index]["category_id"] = self.target_class
        return Poisoned(places, annotations)

    def success(
        self, objects: Objects, places: Tensor, clean: Detections, triggered: Detections
    ) -> Rate:
        """Of the victims, those that are found as objects of the target class."""
        victims = self.attacked(objects, places)
        taken = Objects(victims.boxes, torch.full_like(victims.classes, self.target_class))
        return Rate(int(found(taken, triggered).sum()), len(victims.boxes))
