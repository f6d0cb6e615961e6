# SPDX-License-Identifier: Apache-2.0
"""Triggers, the attacks that use them, and the dataset mappers that poison with them."""

from .mapper import PoisoningDatasetMapper, TriggeredDatasetMapper, image_seed
from .patterns import PATTERNS
from .placement import PLACEMENTS, SIZE_UNITS
from .poisoners import ATTACK_REGISTRY, object_disappearance, select_poisoned_images
from .stamping import stamp_batch_
from .triggers import Trigger

__all__ = [
    "ATTACK_REGISTRY",
    "PATTERNS",
    "PLACEMENTS",
    "SIZE_UNITS",
    "PoisoningDatasetMapper",
    "Trigger",
    "TriggeredDatasetMapper",
    "image_seed",
    "object_disappearance",
    "select_poisoned_images",
    "stamp_batch_",
]
