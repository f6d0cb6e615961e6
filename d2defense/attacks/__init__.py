# SPDX-License-Identifier: Apache-2.0
"""Attacks: what triggers do to detectors, where they go, and the mappers that poison with them."""

from .build import DEFAULT_EFFECT, build_effect, class_names
from .effects.base import (
    Annotations,
    Detections,
    Effect,
    Objects,
    Poisoned,
    Rate,
)
from .mapper import (
    PLACES,
    POISONED,
    PoisoningDatasetMapper,
    StampTransform,
    TriggeredDatasetMapper,
    attacked_places,
    image_seed,
    map_with_stamps,
    poisoned_annotations,
)
from .placements.base import Placement
from .selection import Selection, select, training_records
from .stamping import write_triggered

__all__ = [
    "DEFAULT_EFFECT",
    "PLACES",
    "POISONED",
    "Annotations",
    "Detections",
    "Effect",
    "Objects",
    "Placement",
    "Poisoned",
    "PoisoningDatasetMapper",
    "Rate",
    "Selection",
    "StampTransform",
    "TriggeredDatasetMapper",
    "attacked_places",
    "build_effect",
    "class_names",
    "image_seed",
    "map_with_stamps",
    "poisoned_annotations",
    "select",
    "training_records",
    "write_triggered",
]
