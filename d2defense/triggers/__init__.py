# SPDX-License-Identifier: Apache-2.0
"""What attackers put on images, one family a file."""

from .base import Trigger, build_trigger
from .families.patch import Patch
from .patch_places import visible_rectangles
from .patterns.base import PatchPixels, Pattern
from .regions import Region, RegionTrigger

__all__ = [
    "Patch",
    "PatchPixels",
    "Pattern",
    "Region",
    "RegionTrigger",
    "Trigger",
    "build_trigger",
    "visible_rectangles",
]
