# SPDX-License-Identifier: Apache-2.0
"""The attack that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from d2defense.data.registry import load_dataset
from d2defense.registry import EFFECT_REGISTRY

from .effects.base import Effect

#: What is measured of a detector that nobody says was attacked.
DEFAULT_EFFECT = "disappearance"


def build_effect(cfg: CfgNode, class_names: Sequence[str] = ()) -> Effect:
    """The effect that ``ATTACK`` describes, :data:`DEFAULT_EFFECT` if it names none.

    Args:
        cfg: the whole configuration.
        class_names: of the dataset's contiguous classes.

    Raises:
        ValueError: no such effect, or a setting that cannot be used.
    """
    return EFFECT_REGISTRY.get(cfg.ATTACK.EFFECT or DEFAULT_EFFECT)(cfg, class_names)


def class_names(dataset_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the contiguous classes of the first of some registered datasets; () if unknown.

    Raises:
        DatasetError: it cannot be loaded, and its classes are not known without.
    """
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        if not metadata.get("thing_classes", ()) and metadata.get("json_file"):
            # Detectron2 reads the names of what a module registers only with the images.
            load_dataset(name)
        return tuple(metadata.get("thing_classes", ()))
    return ()
