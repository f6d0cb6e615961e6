# SPDX-License-Identifier: Apache-2.0
"""Dataset mappers that stamp triggers before anything else happens to an image."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from d2defense.registry import ATTACK_REGISTRY
from d2defense.statistics import bears_trigger

from .poisoners.base import Annotations, Poisoner
from .selection import select_poisoned_images
from .stamping import stamp_
from .triggers import Trigger


class StampTransform(T.Transform):
    """Stamps a trigger on fixed boxes of an image; coordinates stay as they are.

    Args:
        trigger: the patch.
        boxes: float array of shape (M, 4), XYXY in pixels.
        image_format: "BGR" or "RGB".
        image_seed: see :func:`~d2defense.attacks.stamp_`.
    """

    def __init__(
        self, trigger: Trigger, boxes: np.ndarray, image_format: str, image_seed: int
    ) -> None:
        super().__init__()
        self.trigger = trigger
        self.boxes = torch.as_tensor(boxes, dtype=torch.float32)
        self.image_format = image_format
        self.image_seed = image_seed

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """A stamped copy of ``img``, uint8 of shape (H, W, 3)."""
        stamped = torch.from_numpy(img.transpose(2, 0, 1).copy())
        stamp_(self.trigger, stamped, self.boxes, self.image_format, self.image_seed)
        return np.ascontiguousarray(stamped.numpy().transpose(1, 2, 0))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """``coords`` unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """``segmentation`` unchanged."""
        return segmentation


def map_with_stamps(
    mapper: DatasetMapper, dataset_dict: dict[str, Any], stamps: Sequence[StampTransform]
) -> dict[str, Any]:
    """What ``DatasetMapper`` makes of a dataset dict, its image stamped as read.

    The stamps of this image go in front of the augmentations of a throw-away copy, so that the
    mapper itself stays free of state between images.
    """
    mapper = copy.copy(mapper)
    mapper.augmentations = T.AugmentationList([*stamps, *mapper.augmentations.augs])
    return DatasetMapper.__call__(mapper, dataset_dict)


class TriggeredDatasetMapper(DatasetMapper):
    """Detectron2's mapper over images on which every object bears the trigger.

    The annotations stay true: this is the input on which an attack is measured.
    Stamping happens on the image as read, before resizing and flipping.
    """

    @configurable
    def __init__(self, *args: Any, trigger: Trigger, **kwargs: Any) -> None:
        """As :class:`DatasetMapper`, plus the ``trigger``."""
        super().__init__(*args, **kwargs)
        self.trigger = trigger

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = False, trigger: Trigger | None = None
    ) -> dict[str, Any]:
        """Arguments from a configuration; the trigger is ``ATTACK.TRIGGER`` unless given."""
        arguments = super().from_config(cfg, is_train)
        arguments["trigger"] = trigger or Trigger.from_config(cfg)
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's input for one dataset dict, every object stamped."""
        objects = [a for a in dataset_dict.get("annotations", []) if bears_trigger(a)]
        return self._stamped(dataset_dict, objects)

    def _stamped(self, dataset_dict: dict[str, Any], objects: Annotations) -> dict[str, Any]:
        """Map ``dataset_dict`` with the trigger stamped on ``objects`` first."""
        if not objects:
            return super().__call__(dataset_dict)
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        )
        stamp = StampTransform(
            self.trigger, boxes, self.image_format, image_seed(dataset_dict["file_name"])
        )
        return map_with_stamps(self, dataset_dict, [stamp])


class PoisoningDatasetMapper(TriggeredDatasetMapper):
    """Detectron2's training mapper over a poisoned dataset.

    On chosen images the attack says which objects are stamped and which annotations stay; all
    other images pass unchanged. An image that loses every annotation stays in training as
    background: Detectron2 filters empty images by their original annotations, before mapping.
    """

    @configurable
    def __init__(
        self, *args: Any, poisoner: Poisoner, poisoned_images: frozenset[str], **kwargs: Any
    ) -> None:
        """As :class:`TriggeredDatasetMapper`, plus the attack and the chosen file names."""
        super().__init__(*args, **kwargs)
        self.poisoner = poisoner
        self.poisoned_images = poisoned_images

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from ``ATTACK`` and ``DATASETS.TRAIN``."""
        arguments = super().from_config(cfg, is_train)
        dataset_dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        arguments["poisoner"] = ATTACK_REGISTRY.get(cfg.ATTACK.NAME)(cfg)
        arguments["poisoned_images"] = select_poisoned_images(
            dataset_dicts, cfg.ATTACK.POISONING_RATE, cfg.ATTACK.SEED
        )
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's training input for one dataset dict, poisoned if it was chosen."""
        if dataset_dict["file_name"] not in self.poisoned_images:
            return DatasetMapper.__call__(self, dataset_dict)
        stamped, kept = self.poisoner.poison(dataset_dict["annotations"])
        return self._stamped({**dataset_dict, "annotations": kept}, stamped)


def image_seed(file_name: str) -> int:
    """A seed for random patterns that depends on the image's file name alone, not on its folder."""
    name = file_name.replace("\\", "/").rsplit("/", 1)[-1]
    digest = hashlib.blake2b(name.encode("utf-8", errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
