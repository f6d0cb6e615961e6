# SPDX-License-Identifier: Apache-2.0
"""What a decision is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..by_class import CLASS_FALLS

# A detector that gives its objects less than this on clean images cannot show what it would lose.
LEAST_FOREGROUND = 0.1


class Decision:
    """A way to turn statistics into a score: the largest suspicion over statistics and triggers.

    Attributes:
        title: in words.
        statistics: names of the statistics that it looks at.
        sign: 1 if they rise under an attack, -1 if they fall.
        is_change: whether the change from the clean images counts, or the statistic itself.
        settings: the settings of an observation that its statistics depend on.
        minimum_deviation: least standard deviation of clean detectors' scores: a few that were
            trained alike on one dataset show less of it than there is between datasets and
            architectures.
    """

    title: ClassVar[str]
    statistics: ClassVar[tuple[str, ...]]
    sign: ClassVar[int]
    is_change: ClassVar[bool]
    settings: ClassVar[tuple[str, ...]]
    minimum_deviation: ClassVar[float]

    def suspicion(self, clean: np.ndarray, triggered: np.ndarray) -> np.ndarray:
        """How far each statistic goes the way that an attack moves it.

        Args:
            clean: of shape (..., S), without a trigger.
            triggered: of shape (..., T, S), under each trigger.

        Returns:
            Array of shape (..., T, S); NaN for no data.
        """
        base = clean[..., None, :] if self.is_change else 0.0
        return self.sign * (triggered - base)

    @property
    def of_images(self) -> tuple[str, ...]:
        """Those of its statistics that are a mean over images, without what one class loses."""
        return tuple(name for name in self.statistics if name not in CLASS_FALLS)

    def ceiling(self, clean: Mapping[str, float], baseline: np.ndarray) -> float:
        """The score that a detector would have if every object vanished.

        Args:
            clean: its statistics on the images as they are, by name.
            baseline: array of shape (T, S): mean suspicion of clean detectors.
        """
        if not self.is_change:
            return 1.0 if clean["max_foreground"] >= LEAST_FOREGROUND else 0.0
        before = np.array([clean[name] for name in self.statistics])
        return float(largest(self.suspicion(before, np.zeros(baseline.shape)) - baseline))


def largest(excess: np.ndarray) -> np.ndarray:
    """The largest value over triggers and statistics, (..., T, S) to (...); 0 without any data."""
    values = np.nan_to_num(excess, nan=-np.inf).max(axis=(-2, -1))
    return np.where(np.isfinite(values), values, 0.0)
