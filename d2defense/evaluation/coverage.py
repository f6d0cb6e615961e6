# SPDX-License-Identifier: Apache-2.0
"""What of a dataset an attack was not measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from d2defense.attacks import Effect, Objects

from .rates import is_of_attacked_class

# What was left out, of what, and how it is said.
_LEFT_OUT = (
    ("images_without_places", "images", "images without a place for the trigger"),
    ("small_objects", "objects", "objects smaller than ATTACK.MIN_SIZE"),
    ("classes_without_victims", "classes", "classes without victims"),
)


def attack_coverage(
    effect: Effect, images: Iterable[tuple[Objects, Tensor]], num_classes: int
) -> dict[str, int]:
    """How much there was to measure an attack on, and how much of it was left out.

    Args:
        effect: of the attack.
        images: of each the true objects, and the places of the trigger, float Tensor (P, 4).
        num_classes: of the dataset.

    Returns:
        Numbers by name: ``images``, of which ``images_without_places`` had nothing to stamp;
        ``objects``, crowds left out, of which ``small_objects`` would be victims but for
        ``ATTACK.MIN_SIZE``; ``classes`` that are attacked, of which ``classes_without_victims``
        had none under a trigger. An effect that attacks no objects attacks no class.
    """
    every_class = Objects(torch.zeros(num_classes, 4), torch.arange(num_classes))
    without_victims = set(every_class.classes[is_of_attacked_class(effect, every_class)].tolist())
    counts = {"images": 0, "images_without_places": 0, "objects": 0, "small_objects": 0}
    counts["classes"] = len(without_victims)
    for objects, places in images:
        small = is_of_attacked_class(effect, objects) & ~effect.victim_objects(objects)
        counts["images"] += 1
        counts["images_without_places"] += not len(places)
        counts["objects"] += len(objects.classes)
        counts["small_objects"] += int(small.sum())
        without_victims -= set(effect.attacked(objects, places).classes.tolist())
    return {**counts, "classes_without_victims": len(without_victims)}


def describe_coverage(coverage: Mapping[str, float]) -> str:
    """What was left out, in words; "" where nothing was.

    Args:
        coverage: of :func:`attack_coverage`.
    """
    return "; ".join(
        f"{words}: {coverage[key]:.0f} of {coverage[total]:.0f}"
        for key, total, words in _LEFT_OUT
        if coverage[key]
    )
