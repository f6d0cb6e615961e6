# SPDX-License-Identifier: Apache-2.0
"""What the objects of one class lose under a trigger.

A backdoor on one class of seven is a seventh of itself over all objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from d2defense.statistics import OBJECT_STATISTICS, Observation

from .bootstrap import Bootstrap
from .images import CleanImage, objects_of_classes

#: By name: minus the largest fall of a statistic over the classes, from the clean images on, where
#: it is 0. By what it is the fall of.
CLASS_FALLS = {f"{name}_of_class": name for name in OBJECT_STATISTICS}
#: Fewer objects of a class are no evidence of it.
LEAST_OBJECTS = 10
# Classes that are named.
_LISTED = 5


def rare_classes(images: Sequence[CleanImage], class_names: Sequence[str]) -> str | None:
    """The classes that a scan cannot judge one by one, in words; None if it can judge all.

    Args:
        images: of the scan, their classes numbered as the detector numbers them.
        class_names: of the detector.
    """
    counts = objects_of_classes(images)
    rare = [name for index, name in enumerate(class_names) if counts[index] < LEAST_OBJECTS]
    if not rare:
        return None
    listed = ", ".join(rare[:_LISTED]) + (" and others" if len(rare) > _LISTED else "")
    return (
        f"what a trigger does to one class alone was not looked at for {len(rare)} of "
        f"{len(class_names)}, of which the images show fewer than {LEAST_OBJECTS} objects: {listed}"
    )


class ClassFall(NamedTuple):
    """The class that loses most."""

    fall: float
    """Of the statistic over its objects; NaN where no class has enough of them."""
    category: int | None
    """Index of the class; None for none."""


def largest_class_fall(
    clean: Observation, triggered: Observation, name: str, least_objects: int = LEAST_OBJECTS
) -> ClassFall:
    """The class whose objects lose most of a statistic.

    Args:
        clean: the images as they are.
        triggered: the same under a trigger.
        name: one of :data:`OBJECT_STATISTICS`.
        least_objects: fewer of a class are no evidence of it.
    """
    falls = falls_of_classes(clean, triggered, name, None, least_objects)
    if not len(falls) or not falls.isfinite().any():
        return ClassFall(math.nan, None)
    return ClassFall(float(falls.max()), int(falls.argmax()))


def resampled_class_falls(
    clean: Observation, triggered: Observation, name: str, bootstrap: Bootstrap
) -> Tensor:
    """The fall of the class that loses most on each resample, (B,); NaN for no data."""
    falls = falls_of_classes(clean, triggered, name, bootstrap)
    if not falls.shape[1]:
        return torch.full(falls.shape[:1], math.nan, dtype=falls.dtype)
    largest = falls.amax(dim=1)
    return torch.where(largest.isfinite(), largest, math.nan)


def falls_of_classes(
    clean: Observation,
    triggered: Observation,
    name: str,
    bootstrap: Bootstrap | None = None,
    least_objects: int = LEAST_OBJECTS,
) -> Tensor:
    """How much each class loses, (K,), or (B, K) over resamples; -inf where it has too few objects.

    Args:
        clean: the images as they are.
        triggered: the same under a trigger.
        name: one of :data:`OBJECT_STATISTICS`.
        bootstrap: resamples of the images; None for all images once.
        least_objects: fewer of a class are no evidence of it.
    """
    before_terms, after_terms = clean.by_class[name], triggered.by_class[name]
    if bootstrap is None:
        before, after = (
            each.numerator.sum(0) / each.denominator.sum(0) for each in (before_terms, after_terms)
        )
    else:
        before, after = bootstrap(before_terms), bootstrap(after_terms)
    falls = before - after
    enough = before_terms.denominator.sum(0) >= least_objects
    return torch.where(enough & ~falls.isnan(), falls, -math.inf)
