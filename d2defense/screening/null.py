# SPDX-License-Identifier: Apache-2.0
"""What a method says of clean images, and the threshold that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class FitError(ValueError):
    """Nothing can be fitted on these clean images, mostly too few; the message says why."""


@dataclass(frozen=True)
class ScoreNull:
    """Scores of n clean images, the null of split conformal prediction.

    A further clean image is as likely to come at any rank among them, whatever their distribution
    (Vovk et al., Algorithmic Learning in a Random World, 2005, section 2; Bates et al., Testing for
    Outliers with Conformal p-values, Annals of Statistics 2023, section 2). So the rate holds on
    average over draws of the clean images, for any n that is large enough, if these are drawn like
    those to come.

    Attributes:
        scores: of the clean images, any order.

    Raises:
        FitError: there are none, or one is NaN.
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores or any(math.isnan(score) for score in self.scores):
            raise FitError("a null needs scores of clean images, none of them NaN")

    @classmethod
    def of(cls, scores: Sequence[float]) -> ScoreNull:
        """The null of these scores."""
        return cls(tuple(map(float, scores)))

    def p_value(self, score: float) -> float:
        """Probability, 1 / (n + 1) to 1, that a clean image scores at least ``score``."""
        return (1 + sum(each >= score for each in self.scores)) / (1 + len(self.scores))

    def threshold(self, false_alarm_rate: float) -> float:
        """The score that a clean image exceeds with probability ``false_alarm_rate`` at most.

        Args:
            false_alarm_rate: above 0 and below 1.

        Raises:
            FitError: the rate is out of range, or n is below 1 / rate - 1.
        """
        return sorted(self.scores)[-allowed_above(len(self.scores), false_alarm_rate)]


def allowed_above(count: int, false_alarm_rate: float) -> int:
    """How many of the n + 1 equally likely ranks may lie above the threshold, 1 at least.

    Args:
        count: n, clean images.
        false_alarm_rate: above 0 and below 1.

    Raises:
        FitError: the rate is out of range, or n is below 1 / rate - 1.
    """
    if not 0 < false_alarm_rate < 1:
        raise FitError(f"a false alarm rate of {false_alarm_rate} is not between 0 and 1")
    above = math.floor(round(false_alarm_rate * (count + 1), 9))
    if above < 1:
        needed = math.ceil(round(1 / false_alarm_rate, 9)) - 1
        raise FitError(
            f"{count} clean images cannot hold a false alarm rate of {false_alarm_rate:g}: it "
            f"takes {needed}"
        )
    return above
