# SPDX-License-Identifier: Apache-2.0
"""What is kept of a detector to compare others with it: its statistics under every trigger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2defense.statistics import STATISTICS

from .survey import Survey


@dataclass(frozen=True)
class Profile:
    """The statistics of one detector over a set of images.

    Attributes:
        name: of the detector.
        sha256: of its weights file; "" if unknown.
        clean: number by name of the statistic, on the images as they are; NaN for no data.
        triggered: the same under each trigger, by name of the trigger.
    """

    name: str
    sha256: str
    clean: dict[str, float]
    triggered: dict[str, dict[str, float]]

    @classmethod
    def from_survey(cls, name: str, sha256: str, survey: Survey) -> Profile:
        """The statistics over all images of a survey."""
        return cls(
            name,
            sha256,
            {key: terms.ratio() for key, terms in survey.clean.terms.items()},
            {
                trigger: {key: terms.ratio() for key, terms in under.terms.items()}
                for trigger, under in survey.triggered.items()
            },
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Profile:
        """The profile that :meth:`as_dict` made a dictionary of.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """

        def numbers(values: dict[str, Any]) -> dict[str, float]:
            return {
                name: math.nan if values[name] is None else float(values[name])
                for name in STATISTICS
            }

        return cls(
            str(content["name"]),
            str(content["sha256"]),
            numbers(content["clean"]),
            {str(name): numbers(values) for name, values in content["triggered"].items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """The profile for a JSON file; None for no data."""

        def numbers(values: dict[str, float]) -> dict[str, float | None]:
            return {name: value if math.isfinite(value) else None for name, value in values.items()}

        return {
            "name": self.name,
            "sha256": self.sha256,
            "clean": numbers(self.clean),
            "triggered": {name: numbers(values) for name, values in self.triggered.items()},
        }

    def arrays(
        self, triggers: Sequence[str], statistics: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The clean numbers, of shape (S,), and those under the triggers, of shape (T, S).

        Raises:
            KeyError: a trigger that the profile lacks.
        """
        clean = np.array([self.clean[name] for name in statistics])
        under = [[self.triggered[t][name] for name in statistics] for t in triggers]
        return clean, np.array(under)
