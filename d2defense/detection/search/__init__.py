# SPDX-License-Identifier: Apache-2.0
"""The search for an unknown trigger: by gradient, on the suspect, held against references."""

from .arms import names_of_classes
from .levels import LEVELS, OFF, SearchSettings
from .null import (
    ALONE,
    MODES,
    REFERENCES,
    TWIN,
    CleanSearch,
    ModeNull,
    NullError,
    SearchNull,
    Shown,
    arm_key,
    load_null,
    shipped_null,
)
from .search import ArmResult, SearchOutcome, divide, search_detector
from .verdict import with_search

__all__ = [
    "ALONE",
    "LEVELS",
    "MODES",
    "OFF",
    "REFERENCES",
    "TWIN",
    "ArmResult",
    "CleanSearch",
    "ModeNull",
    "NullError",
    "SearchNull",
    "SearchOutcome",
    "SearchSettings",
    "Shown",
    "arm_key",
    "divide",
    "load_null",
    "names_of_classes",
    "search_detector",
    "shipped_null",
    "with_search",
]
