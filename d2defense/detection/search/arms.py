# SPDX-License-Identifier: Apache-2.0
"""What a search tries: an effect with a target class, a placement, a family and its budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import BoxMode
from torch import Tensor

from d2defense.attacks import Effect, Objects
from d2defense.config import get_d2defense_cfg
from d2defense.registry import EFFECT_REGISTRY, PLACEMENT_REGISTRY
from d2defense.triggers import Trigger, all_starts

from ..images import CleanImage
from .room import with_room

# Windows of an image where a ghost is tried.
_WINDOWS = 2


@dataclass(frozen=True)
class Goal:
    """An effect at a placement: what a trigger is to do, and where it goes.

    Attributes:
        effect: with its target class, if it has one.
        placement: name in ``PLACEMENT_REGISTRY``.
    """

    effect: Effect
    placement: str

    @property
    def target_class(self) -> int | None:
        """Index of the class that objects turn into, or that appears; None for none."""
        return self.effect.target_class

    @property
    def kind(self) -> tuple[str, str]:
        """Effect and placement: what goals that differ in their target class have in common."""
        return self.effect.name, self.placement

    @property
    def victim_class(self) -> int | None:
        """Index of the class whose objects alone are attacked; None for all."""
        return self.effect.victim_class

    def can_attack(self, category: int) -> bool:
        """Whether objects of a class are victims, and not those of a class alone."""
        chooses = self.effect.takes_victim_class and self.victim_class is None
        return chooses and self.effect.is_victim_class(category)

    def of_class(self, category: int, class_names: Sequence[str]) -> Goal:
        """The same on the objects of one class alone.

        Args:
            category: index of a class that it can attack (:meth:`can_attack`).
            class_names: of the detector, in order, each once.
        """
        cfg = self.effect.cfg.clone()
        cfg.ATTACK.VICTIM_CLASS = class_names[category]
        return Goal(type(self.effect)(cfg, list(class_names)), self.placement)

    def scenes(self, images: Sequence[CleanImage]) -> Sequence[CleanImage]:
        """The images on which it is tried: those given, with room where that is needed.

        Args:
            images: clean.
        """
        return with_room(images) if self.effect.anywhere else images

    def places(self, image: CleanImage, seed: int) -> Tensor:
        """Where the trigger goes on an image, float (P, 4), XYXY in pixels of ``image.image``."""
        record = {
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category}
                for box, category in zip(image.boxes.tolist(), image.classes.tolist(), strict=True)
            ]
        }
        rng = np.random.default_rng([seed, image.seed])
        size = tuple(image.image.shape[1:])
        return torch.from_numpy(self.effect.places(record, size, rng)).float()

    def regions(self, image: CleanImage, places: Tensor) -> Tensor:
        """What the trigger is to change, float (R, 4), XYXY in pixels of ``image.image``."""
        size = tuple(image.image.shape[1:])
        return self.effect.regions(Objects(image.boxes, image.classes), places, size)


@dataclass(frozen=True)
class Arm:
    """One thing to try: a goal, and the trigger to start from.

    Attributes:
        goal: what the trigger is to do.
        start: family and budget, with the tensors that are optimised.
    """

    goal: Goal
    start: Trigger

    @property
    def name(self) -> str:
        """In words, such as "misclassification of yield to stop: patch of 20 % on objects"."""
        goal, node = self.goal, self.goal.effect.cfg.ATTACK
        victim = node.VICTIM_CLASS and f" of {node.VICTIM_CLASS}"
        target = node.TARGET_CLASS and f" to {node.TARGET_CLASS}"
        return f"{goal.effect.name}{victim}{target}: {self.start.name} on {goal.placement}"


def all_goals(class_names: Sequence[str], windows: int = _WINDOWS) -> Iterator[Goal]:
    """Every effect that is searched, at each of its placements, with each target class.

    Args:
        class_names: of the detector, in order, each once.
        windows: of an image, at most, where a ghost is tried.
    """
    names = list(class_names)
    for _, effect in EFFECT_REGISTRY:
        for placement in effect.searched_at:
            for target in names if effect.needs_target else [""]:
                cfg = get_d2defense_cfg()
                cfg.ATTACK.EFFECT = EFFECT_REGISTRY.name_of(effect)
                cfg.ATTACK.TARGET_CLASS = target
                cfg.ATTACK.PLACEMENT = placement
                cfg.ATTACK.PLACES.BACKGROUND.COUNT = windows
                yield Goal(effect(cfg, names), placement)


def names_of_classes(num_classes: int, class_names: Sequence[str]) -> list[str]:
    """The dataset's names where they can be those of a detector's classes; else "class 0" and on.

    Args:
        num_classes: of the detector.
        class_names: of the dataset.
    """
    if len(class_names) == len(set(filter(None, class_names))) == num_classes:
        return list(class_names)
    return [f"class {index}" for index in range(num_classes)]


def starts(placement: str, families: tuple[str, ...] = ()) -> list[Trigger]:
    """The triggers that a search starts from at a placement, those of all families that have any.

    Args:
        placement: name in ``PLACEMENT_REGISTRY``.
        families: names of those to keep; all if empty.
    """
    return all_starts(PLACEMENT_REGISTRY.get(placement).kind, families)
