# SPDX-License-Identifier: Apache-2.0
"""Triggers, the attacks that use them, and the dataset mappers that poison with them."""

from .mapper import PoisoningDatasetMapper, TriggeredDatasetMapper, image_seed
from .patterns.base import PatchPixels, Pattern
from .placement import visible_rectangles
from .poisoners.base import Annotations, Poisoner
from .selection import select_poisoned_images
from .stamping import stamp_, stamp_batch_
from .triggers import Trigger

__all__ = [
    "Annotations",
    "PatchPixels",
    "Pattern",
    "Poisoner",
    "PoisoningDatasetMapper",
    "Trigger",
    "TriggeredDatasetMapper",
    "image_seed",
    "select_poisoned_images",
    "stamp_",
    "stamp_batch_",
    "visible_rectangles",
]
