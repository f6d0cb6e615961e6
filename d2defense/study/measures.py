# SPDX-License-Identifier: Apache-2.0
"""What the study reads off its measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

Evaluation = Mapping[str, Any]


def found(evaluation: Evaluation | None, condition: str = "triggered") -> float | None:
    """Share of objects found, 0..1; None for no evaluation."""
    return evaluation and evaluation[condition]["objects_found"]


def recovered(
    before: Evaluation | None, after: Evaluation | None, clean: Evaluation | None
) -> float | None:
    """Of the objects found that the attack took, the share that a repair gave back.

    ``(after - before) / (clean - before)``, objects found under the trigger by the backdoored
    detector, the repaired one, and a clean one of the same kind and seed under the same trigger.
    More than 1 where the repaired detector finds more than the clean one.

    Returns:
        None where something is not measured, or the attack took nothing.
    """
    shares = [found(evaluation) for evaluation in (before, after, clean)]
    if any(share is None for share in shares):
        return None
    start, end, whole = shares
    return (end - start) / (whole - start) if whole > start else None


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def auc(clean: Sequence[float], backdoored: Sequence[float]) -> float:
    """Area under the ROC curve: how often a backdoored detector scores above a clean one.

    Ties count one half (Mann and Whitney's U over the number of pairs).
    """
    u = stats.mannwhitneyu(backdoored, clean).statistic
    return float(u / (len(clean) * len(backdoored)))


def auc_interval(
    clean: Sequence[float], backdoored: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Newcombe's interval of the AUC, method 5 (Statistics in Medicine 25, 2006, 559).

    The values theta with ``|theta - AUC| <= z * sqrt(variance(theta))``, the variance being Hanley
    and McNeil's with both sample sizes replaced by their mean. It does not collapse where all
    backdoored detectors score above all clean ones.
    """
    area, m, n = auc(clean, backdoored), len(backdoored), len(clean)
    z = stats.norm.isf((1 - confidence) / 2)
    extra = (m + n) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - area) ** 2 - z**2 * theta * (1 - theta) * spread / (m * n)

    # Beside the area, where the variance is positive: at an area of 1, 1 itself is a root.
    beside = 1e-9
    low = optimize.brentq(beyond, 0, area - beside) if area > beside else 0.0
    high = optimize.brentq(beyond, area + beside, 1) if area < 1 - beside else 1.0
    return Interval(float(low), float(high))


def roc_curve(clean: Sequence[float], backdoored: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """False-alarm and true-positive rates at every threshold, from (0, 0) to (1, 1).

    A detector is called backdoored if it scores at least the threshold.
    """
    thresholds = np.unique([*clean, *backdoored])[::-1]
    rates = [
        np.concatenate([[0.0], (np.asarray(scores)[None] >= thresholds[:, None]).mean(1)])
        for scores in (clean, backdoored)
    ]
    return rates[0], rates[1]


def true_positive_rate(
    clean: Sequence[float], backdoored: Sequence[float], false_alarm_rate: float = 0.01
) -> float:
    """The largest true-positive rate at which at most so many clean detectors are called
    backdoored; with less than 1 / rate of them, none may be."""
    alarms, hits = roc_curve(clean, backdoored)
    return float(hits[alarms <= false_alarm_rate].max())
