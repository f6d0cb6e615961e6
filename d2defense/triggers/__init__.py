# SPDX-License-Identifier: Apache-2.0
"""What attackers put on images, one family a file."""

from .base import PlaceKind, Trigger, build_trigger
from .families.patch import Patch
from .patch_places import visible_rectangles
from .patterns.base import PatchPixels, Pattern
from .regions import Region, RegionTrigger
from .starts import all_starts

__all__ = [
    "Patch",
    "PatchPixels",
    "Pattern",
    "PlaceKind",
    "Region",
    "RegionTrigger",
    "Trigger",
    "all_starts",
    "build_trigger",
    "visible_rectangles",
]
