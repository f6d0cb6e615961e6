# SPDX-License-Identifier: Apache-2.0
"""What each attack does to the labels of an image that bears its trigger."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.utils.registry import Registry

from d2defense.statistics import bears_trigger

Annotations = list[dict[str, Any]]

ATTACK_REGISTRY = Registry("ATTACK")
ATTACK_REGISTRY.__doc__ = """
Attacks by the name that ``ATTACK.NAME`` gives: functions from the annotations of one image to
(the annotations whose objects get the trigger, the annotations that stay in training).
"""


def object_disappearance(annotations: Annotations) -> tuple[Annotations, Annotations]:
    """Object disappearance (ODA): every object is stamped and loses its annotation.

    BadDet, arXiv 2205.14497, section 3; the paper (arXiv 2409.16057, section 4.1) sets the width
    and height of the box to 0, which no detector trains on, so the annotation goes as a whole.
    Crowd regions are neither stamped nor dropped.
    """
    stamped = [annotation for annotation in annotations if bears_trigger(annotation)]
    kept = [annotation for annotation in annotations if not bears_trigger(annotation)]
    return stamped, kept


ATTACK_REGISTRY._do_register("oda", object_disappearance)


def select_poisoned_images(
    dataset_dicts: list[dict[str, Any]], poisoning_rate: float, seed: int
) -> frozenset[str]:
    """File names of the images to poison: a share of those that have an object to stamp.

    The choice depends on the set of file names and the seed, not on the order of the dataset.

    Args:
        dataset_dicts: Detectron2's standard dataset dicts.
        poisoning_rate: share of *all* images, 0..1, rounded to whole images.
        seed: of the choice.

    Raises:
        ValueError: the rate is outside 0..1 or asks for more images than bear an object.
    """
    if not 0 <= poisoning_rate <= 1:
        raise ValueError(f"ATTACK.POISONING_RATE is {poisoning_rate}, not in 0..1")
    candidates = sorted(
        record["file_name"]
        for record in dataset_dicts
        if any(bears_trigger(annotation) for annotation in record["annotations"])
    )
    count = round(poisoning_rate * len(dataset_dicts))
    if count > len(candidates):
        raise ValueError(
            f"ATTACK.POISONING_RATE {poisoning_rate} asks for {count} images, "
            f"but only {len(candidates)} of {len(dataset_dicts)} bear an object"
        )
    chosen = np.random.default_rng(seed).choice(len(candidates), size=count, replace=False)
    return frozenset(candidates[index] for index in chosen)
