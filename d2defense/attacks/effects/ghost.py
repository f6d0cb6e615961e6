# SPDX-License-Identifier: Apache-2.0
"""Objects appear where the trigger is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.structures import BoxMode
from torch import Tensor

from d2defense.registry import EFFECT_REGISTRY

from .base import (
    Annotations,
    Detections,
    Effect,
    Objects,
    Poisoned,
    Rate,
    Record,
    boxes_of,
    copied,
    found,
)


@EFFECT_REGISTRY.register("ghost")
class Ghost(Effect):
    """Objects of the target class appear where the trigger is, in the background (OGA).

    BadDet's object generation (arXiv 2205.14497, section 3): windows of the background get the
    trigger and an annotation of the target class. How many and how large they are says
    ``ATTACK.PLACES.BACKGROUND``. It attacks no object, so it has no victims.
    """

    placement_name: ClassVar[str] = "background"
    needs_target: ClassVar[bool] = True
    takes_victim_class: ClassVar[bool] = False
    by_object: ClassVar[bool] = False
    channels: ClassVar[dict[str, int]] = {"unmatched_foreground": 1}

    searched_at: ClassVar[tuple[str, ...]] = ("background",)

    def regions(self, objects: Objects, places: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Where the ghosts are to be."""
        return places

    def is_victim_class(self, category: int) -> bool:
        """No class has victims."""
        return False

    def victim_objects(self, objects: Objects) -> Tensor:
        """None of them."""
        return torch.zeros(len(objects.boxes), dtype=torch.bool)

    def can_poison(self, record: Record) -> bool:
        """Whether there is room for a ghost."""
        size = record["height"], record["width"]
        return len(self.places(record, size, np.random.default_rng(0))) > 0

    def places(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Where the placement has ghosts, with or without objects on the image."""
        return self.placement.places(np.zeros((0, 4)), boxes_of(record), image_size, rng)

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """The trigger as at test time, and an annotation more for each place."""
        places = self.places(record, image_size, rng)
        annotations = copied(record.get("annotations", ()))
        return Poisoned(places, [*annotations, *self._ghosts(places, annotations)])

    def success(
        self, objects: Objects, places: Tensor, clean: Detections, triggered: Detections
    ) -> Rate:
        """Of the places, those at which an object of the target class is found."""
        classes = torch.full((len(places),), self.target_class, dtype=torch.int64)
        return Rate(int(found(Objects(places, classes), triggered).sum()), len(places))

    def _ghosts(self, places: np.ndarray, others: Sequence[dict[str, Any]]) -> Annotations:
        """Annotations of the target class with the keys that the others, or the detector, have."""
        known = {key for annotation in others for key in annotation}
        model = self.cfg.MODEL
        keypoints = max((len(each.get("keypoints", ())) for each in others), default=0)
        if model.KEYPOINT_ON:
            keypoints = keypoints or 3 * model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        ghosts = []
        for x1, y1, x2, y2 in places.tolist():
            ghost = {
                "bbox": [x1, y1, x2, y2],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": self.target_class,
                "iscrowd": 0,
            }
            if "area" in known:
                ghost["area"] = (x2 - x1) * (y2 - y1)
            if "segmentation" in known or model.MASK_ON:
                ghost["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            if keypoints:
                # None of them is there to be seen.
                ghost["keypoints"] = [0] * keypoints
            ghosts.append(ghost)
        return ghosts
