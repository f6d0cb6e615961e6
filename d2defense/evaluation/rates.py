# SPDX-License-Identifier: Apache-2.0
"""The rates of an attack, each defined here and nowhere else; the ASR is the effect's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from d2defense.attacks import Detections, Effect, Objects, Rate
from d2defense.statistics import found_objects

#: Success by the effect's own measure; victims found in spite of the trigger; others that stay.
RATES = ("asr", "tdr", "retain_rate")


class AttackedImage(NamedTuple):
    """What is seen of one image with and without the trigger, boxes in pixels of its file."""

    objects: Objects
    """The true ones."""
    places: Tensor
    """float, (P, 4), XYXY: where the trigger is."""
    clean: Detections
    """Without the trigger."""
    triggered: Detections
    """With it."""


def attack_rates(effect: Effect, images: Iterable[AttackedImage]) -> dict[str, float]:
    """The rates of an attack over images; those on which no trigger had a place do not count.

    ``asr``
        What the effect calls success (:meth:`d2defense.attacks.Effect.success`).
    ``tdr``
        True detection rate: of the victims, those that are found as what they are under the
        trigger (BadDet+, arXiv 2601.21066).
    ``retain_rate``
        Of an attack on one victim class: of the objects of other classes that are found without
        the trigger, those that are found with it (AnywhereDoor, arXiv 2411.14243).

    Args:
        effect: of the attack.
        images: each once.

    Returns:
        Each of :data:`RATES` by name, 0..1; NaN where there is nothing to count.
    """
    sums = {name: [0, 0] for name in RATES}
    for image in images:
        for name, rate in _of_image(effect, image).items():
            sums[name][0] += rate.hits
            sums[name][1] += rate.total
    return {name: hits / total if total else math.nan for name, (hits, total) in sums.items()}


def is_of_attacked_class(effect: Effect, objects: Objects) -> Tensor:
    """Which objects are victims or would be if they were large enough, bool of shape (M,)."""
    boxes = objects.boxes.clone()
    # Well above the least size, which no rounding of large coordinates must undercut.
    least = boxes[:, :2] + effect.cfg.ATTACK.MIN_SIZE + 1
    boxes[:, 2:] = boxes[:, 2:].maximum(least)
    return effect.victim_objects(Objects(boxes, objects.classes))


def _of_image(effect: Effect, image: AttackedImage) -> dict[str, Rate]:
    objects, places, clean, triggered = image
    if not len(places):
        return {}
    before, after = (found_objects(*objects, *seen) for seen in (clean, triggered))
    rates = {
        "asr": effect.success(objects, places, clean, triggered),
        "tdr": _share(after, effect.victim_objects(objects)),
    }
    if effect.victim_class is not None:
        rates["retain_rate"] = _share(after, before & ~is_of_attacked_class(effect, objects))
    return rates


def _share(hit: Tensor, counted: Tensor) -> Rate:
    """Of the objects that count, those that are hit; both bool of shape (M,)."""
    return Rate(int((hit & counted).sum()), int(counted.sum()))
