# SPDX-License-Identifier: Apache-2.0
"""The search for an unknown trigger: by gradient, on the suspect, held against references."""

from ..scale import LogitScale
from .arms import Arm, Goal, all_goals, names_of_classes, starts
from .judge import ArmResult
from .levels import LEVELS, OFF, SearchSettings
from .null import (
    ALONE,
    MODES,
    REFERENCES,
    TWIN,
    CleanSearch,
    ModeNull,
    SearchNull,
    SearchNullError,
    Shown,
    arm_key,
    load_null,
    shipped_null,
)
from .optimise import ArmState
from .search import SearchOutcome, divide, search_detector
from .verdict import with_search

__all__ = [
    "ALONE",
    "LEVELS",
    "MODES",
    "OFF",
    "REFERENCES",
    "TWIN",
    "Arm",
    "ArmResult",
    "ArmState",
    "CleanSearch",
    "Goal",
    "LogitScale",
    "ModeNull",
    "SearchNull",
    "SearchNullError",
    "SearchOutcome",
    "SearchSettings",
    "Shown",
    "all_goals",
    "arm_key",
    "divide",
    "load_null",
    "names_of_classes",
    "search_detector",
    "shipped_null",
    "starts",
    "with_search",
]
