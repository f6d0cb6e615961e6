# SPDX-License-Identifier: Apache-2.0
"""Dataset mappers that apply triggers before anything else happens to an image."""

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

from d2defense.triggers import Trigger, build_trigger

from .build import build_effect, class_names
from .effects.base import POISONED, Annotations, Effect
from .selection import CLEAN_COPY, Selection, restricted, select

#: Key of a test input: where the trigger is, float Tensor (P, 4), XYXY in pixels of the file.
PLACES = "places"


class StampTransform(T.Transform):
    """Applies a trigger at fixed places of an image; coordinates stay as they are.

    Args:
        trigger: any family's.
        places: float array of shape (P, 4), XYXY in pixels.
        image_format: "BGR" or "RGB".
        image_seed: see :meth:`d2defense.triggers.Trigger.apply`.
    """

    def __init__(
        self, trigger: Trigger, places: np.ndarray, image_format: str, image_seed: int
    ) -> None:
        super().__init__()
        self.trigger = trigger
        self.places = torch.as_tensor(places, dtype=torch.float32).reshape(-1, 4)
        self.image_format = image_format
        self.image_seed = image_seed

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """A triggered copy of ``img``, uint8 of shape (H, W, 3)."""
        images = torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))[None]
        stamped = self.trigger.apply(
            images, [img.shape[:2]], [self.places], [self.image_seed], self.image_format
        )
        return np.ascontiguousarray(stamped[0].numpy().transpose(1, 2, 0))

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
    """Detectron2's mapper over images that bear the trigger wherever the effect puts it.

    The annotations stay true: this is the input on which an attack is measured. The trigger goes on
    the image as read, before resizing and flipping. What it maps has one more key, ``places``.
    """

    @configurable
    def __init__(self, *args: Any, trigger: Trigger, effect: Effect, **kwargs: Any) -> None:
        """As :class:`DatasetMapper`, plus the ``trigger`` and the ``effect``."""
        super().__init__(*args, **kwargs)
        self.trigger = trigger
        self.effect = effect

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = False,
        trigger: Trigger | None = None,
        effect: Effect | None = None,
    ) -> dict[str, Any]:
        """Arguments from a configuration; trigger and effect are ``ATTACK``'s unless given."""
        names = class_names(cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)
        return super().from_config(cfg, is_train) | {
            "trigger": trigger or build_trigger(cfg),
            "effect": effect or build_effect(cfg, names),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's input for one dataset dict, with the trigger on its image."""
        places = attacked_places(dataset_dict, self.effect)
        mapped = self._stamped(dataset_dict, places)
        mapped[PLACES] = torch.as_tensor(places, dtype=torch.float32).reshape(-1, 4)
        return mapped

    def _stamped(self, dataset_dict: dict[str, Any], places: np.ndarray) -> dict[str, Any]:
        """Map ``dataset_dict`` with the trigger at ``places`` first."""
        if not len(places):
            return DatasetMapper.__call__(self, dataset_dict)
        seed = image_seed(dataset_dict["file_name"])
        stamp = StampTransform(self.trigger, places, self.image_format, seed)
        return map_with_stamps(self, dataset_dict, [stamp])


class PoisoningDatasetMapper(TriggeredDatasetMapper):
    """Detectron2's training mapper over a poisoned dataset.

    On chosen images the effect says where the trigger goes and which annotations the image has from
    then on; on others the trigger may be spurious, without any effect; the rest pass unchanged. An
    image that loses every annotation stays in training as background: Detectron2 filters empty
    images by their original annotations, before mapping.
    """

    @configurable
    def __init__(self, *args: Any, selection: Selection, **kwargs: Any) -> None:
        """As :class:`TriggeredDatasetMapper`, plus what was selected."""
        super().__init__(*args, **kwargs)
        self.selection = selection

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from ``ATTACK`` and ``DATASETS.TRAIN``."""
        arguments = super().from_config(cfg, is_train)
        dataset_dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        arguments["selection"] = select(dataset_dicts, arguments["effect"], cfg)
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's training input for one dataset dict, poisoned if it was chosen."""
        name = dataset_dict["file_name"]
        if not dataset_dict.get(CLEAN_COPY):
            if name in self.selection.poisoned:
                return self._poisoned(dataset_dict, self.selection.poisoned[name])
            if name in self.selection.spurious:
                places = self.effect.spurious_places(*_attacked(dataset_dict, self.effect))
                return self._stamped(dataset_dict, places)
        return DatasetMapper.__call__(self, dataset_dict)

    def _poisoned(
        self, dataset_dict: dict[str, Any], victims: tuple[int, ...] | None
    ) -> dict[str, Any]:
        record, *rest = _attacked(dataset_dict, self.effect)
        places, annotations = self.effect.poison(restricted(record, victims), *rest)
        mapped = self._stamped({**dataset_dict, "annotations": annotations}, places)
        mapped[POISONED] = len(places) > 0
        return mapped


def poisoned_annotations(dataset_dict: dict[str, Any], effect: Effect) -> Annotations:
    """What an attacker wants a triggered test image to be labelled with."""
    return effect.wanted(*_attacked(dataset_dict, effect))


def attacked_places(dataset_dict: dict[str, Any], effect: Effect) -> np.ndarray:
    """Where the trigger goes on a test image, float (P, 4), XYXY in pixels of the file."""
    return effect.places(*_attacked(dataset_dict, effect))


def _attacked(
    dataset_dict: dict[str, Any], effect: Effect
) -> tuple[dict[str, Any], tuple[int, int], np.random.Generator]:
    """What an effect is asked with: its random choices are the image's own."""
    seeds = [effect.cfg.ATTACK.SEED, image_seed(dataset_dict["file_name"])]
    size = dataset_dict["height"], dataset_dict["width"]
    return dataset_dict, size, np.random.default_rng(seeds)


def image_seed(file_name: str) -> int:
    """A seed for random patterns that depends on the image's file name alone, not on its folder."""
    name = file_name.replace("\\", "/").rsplit("/", 1)[-1]
    digest = hashlib.blake2b(name.encode("utf-8", errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
