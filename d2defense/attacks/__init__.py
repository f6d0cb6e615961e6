# SPDX-License-Identifier: Apache-2.0
"""Triggers, the attacks that use them, and the dataset mappers that poison with them."""

from .mapper import PoisoningDatasetMapper, TriggeredDatasetMapper, image_seed
from .poisoners import (
    ATTACK_REGISTRY,
    bears_trigger,
    object_disappearance,
    select_poisoned_images,
)
from .triggers import PATTERNS, Trigger

__all__ = [
    "ATTACK_REGISTRY",
    "PATTERNS",
    "PoisoningDatasetMapper",
    "Trigger",
    "TriggeredDatasetMapper",
    "bears_trigger",
    "image_seed",
    "object_disappearance",
    "select_poisoned_images",
]
