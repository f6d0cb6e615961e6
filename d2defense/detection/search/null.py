# SPDX-License-Identifier: Apache-2.0
"""What a search finds in clean detectors: a trigger hurts the one it was made for the most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from d2defense.files import write_json

from ..reference import Reference
from .arms import Arm

SCHEMA_VERSION = 1
_FALSE_ALARM_RATE = 0.01
# Clean detectors of one dataset differ less than others would.
_MINIMUM_DEVIATION = 0.05


def arm_key(arm: Arm) -> str:
    """What arms have in common whose excesses are compared: all but the target class."""
    return f"{arm.goal.effect.name}, {arm.start.name} on {arm.goal.placement}"


@dataclass(frozen=True)
class SearchNull:
    """Excesses of clean detectors that were searched like suspects.

    Attributes:
        name: which ones, in words.
        searches: for each search the largest excess by :func:`arm_key`; arms that were given up
            before they were measured are missing.

    Raises:
        ValueError: fewer than 3 searches.
    """

    name: str
    searches: tuple[Mapping[str, float], ...]

    def __post_init__(self) -> None:
        if len(self.searches) < 3:
            raise ValueError("a null needs at least 3 searches of clean detectors")

    def baseline(self, key: str) -> float:
        """Mean excess of clean detectors by an arm; 0 where none of them got so far."""
        return _baseline(self.searches, key)

    @property
    def reference(self) -> Reference:
        """What these detectors score, each against the others; gives threshold and p-value."""
        scores = [
            margin(each, [other for other in self.searches if other is not each])
            for each in self.searches
        ]
        return Reference(np.zeros((1, 1)), np.array(scores), _FALSE_ALARM_RATE, _MINIMUM_DEVIATION)

    def save(self, path: Path) -> None:
        """Write it as JSON, with the threshold that follows."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "threshold": self.reference.threshold,
            "searches": [dict(each) for each in self.searches],
        }
        write_json(path, content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SearchNull:
        """The null that :meth:`save` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is not {SCHEMA_VERSION}")
        searches = tuple(
            {str(key): float(value) for key, value in each.items()} for each in content["searches"]
        )
        return cls(str(content["name"]), searches)


def margin(excesses: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> float:
    """The largest excess beyond what clean detectors show by the same arm; 0 without any."""
    return max((value - _baseline(others, key) for key, value in excesses.items()), default=0.0)


def _baseline(searches: Sequence[Mapping[str, float]], key: str) -> float:
    known = [each[key] for each in searches if key in each]
    return float(np.mean(known)) if known else 0.0


@cache
def shipped_null() -> SearchNull:
    """The one that comes with the package; ``tools/calibrate_search.py`` makes it."""
    text = (resources.files("d2defense") / "assets" / "search.json").read_text(encoding="utf-8")
    return SearchNull.from_dict(json.loads(text))
