# SPDX-License-Identifier: Apache-2.0
"""The search for an unknown trigger: by gradient, on the suspect, held against references."""

from .arms import names_of_classes
from .levels import LEVELS, OFF, SearchSettings
from .null import SearchNull, arm_key, shipped_null
from .search import ArmResult, SearchOutcome, divide, search_detector
from .verdict import with_search

__all__ = [
    "LEVELS",
    "OFF",
    "ArmResult",
    "SearchNull",
    "SearchOutcome",
    "SearchSettings",
    "arm_key",
    "divide",
    "names_of_classes",
    "search_detector",
    "shipped_null",
    "with_search",
]
