# SPDX-License-Identifier: Apache-2.0
"""How well a score ranks backdoored above clean, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

#: Level of the intervals.
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def area_under_curve(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Probability that a positive scores above a negative; ties count half.

    Mann and Whitney's U over the number of pairs: the area under the ROC curve.

    Args:
        positives: scores of shape (..., P).
        negatives: scores of shape (..., N).

    Returns:
        Array of shape (...).
    """
    first, second = np.asarray(positives)[..., :, None], np.asarray(negatives)[..., None, :]
    axes = (-2, -1)
    wins = (first > second).sum(axis=axes) + (first == second).sum(axis=axes) / 2
    return wins / (first.shape[-2] * second.shape[-1])


def area_interval(
    area: float, positives: int, negatives: int, confidence: float = CONFIDENCE
) -> Interval:
    """Newcombe's interval of an area, method 5 (Statistics in Medicine 25, 2006, 559).

    The values theta with ``|theta - area| <= z * sqrt(variance(theta))``, the variance being Hanley
    and McNeil's with both sample sizes replaced by their mean. It does not collapse where all
    positives score above all negatives.

    Args:
        area: by :func:`area_under_curve`.
        positives: how many.
        negatives: how many.
        confidence: level, 0..1.
    """
    z = stats.norm.isf((1 - confidence) / 2)
    extra = (positives + negatives) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - area) ** 2 - z**2 * theta * (1 - theta) * spread / (positives * negatives)

    # Beside the area, where the variance is positive: at an area of 1, 1 itself is a root.
    beside = 1e-9
    low = optimize.brentq(beyond, 0, area - beside) if area > beside else 0.0
    high = optimize.brentq(beyond, area + beside, 1) if area < 1 - beside else 1.0
    return Interval(float(low), float(high))


def share_found(positives: np.ndarray, negatives: np.ndarray, rate: float) -> np.ndarray:
    """Share of positives above a threshold that at most ``rate`` of the negatives exceed.

    With fewer than ``1 / rate`` negatives none of them may exceed it. Shapes are those of
    :func:`area_under_curve`.
    """
    positives, negatives = np.asarray(positives), np.asarray(negatives)
    count = negatives.shape[-1]
    allowed = int(np.floor(rate * count + 1e-9))
    if allowed >= count:
        return np.ones(positives.shape[:-1])
    threshold = np.sort(negatives, axis=-1)[..., count - 1 - allowed, None]
    return (positives > threshold).mean(axis=-1)


def roc_curve(
    positives: Sequence[float], negatives: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of negatives and of positives at every threshold, from (0, 0) to (1, 1).

    What scores at least the threshold is called positive.
    """
    thresholds = np.unique([*negatives, *positives])[::-1]
    rates = [
        np.concatenate([[0.0], (np.asarray(scores)[None] >= thresholds[:, None]).mean(1)])
        for scores in (negatives, positives)
    ]
    return rates[0], rates[1]
