# SPDX-License-Identifier: Apache-2.0
"""What clean detectors do under the triggers of one scan, and the threshold that follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The functions behind scipy.stats.t: all of scipy.stats takes a second to import.
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Reference:
    """What clean detectors do under the triggers of one scan.

    Attributes:
        baseline: array of shape (T, S): the mean suspicion of the clean detectors.
        clean_scores: the score of each of n clean detectors against the others.
        false_alarm_rate: share of clean detectors that may score above the threshold.
        minimum_deviation: see :class:`Decision`.
    """

    baseline: np.ndarray
    clean_scores: np.ndarray
    false_alarm_rate: float
    minimum_deviation: float

    @property
    def threshold(self) -> float:
        """Score that the next clean detector exceeds with probability ``false_alarm_rate``.

        The upper end of Student's prediction interval for one more draw from a normal population,
        ``mean + t(1 - rate, n - 1) * sd * sqrt(1 + 1 / n)``: few clean detectors are at hand, so
        an empirical quantile of 1 % does not exist.
        """
        quantile = -stdtrit(len(self.clean_scores) - 1, self.false_alarm_rate)
        return float(np.mean(self.clean_scores) + quantile * self._scale())

    def p_value(self, score: float) -> float:
        """Probability that one more clean detector scores at least ``score``."""
        standardised = (score - np.mean(self.clean_scores)) / self._scale()
        return float(stdtr(len(self.clean_scores) - 1, -standardised))

    def _scale(self) -> float:
        count = len(self.clean_scores)
        deviation = max(np.std(self.clean_scores, ddof=1), self.minimum_deviation)
        return float(deviation * np.sqrt(1 + 1 / count))
