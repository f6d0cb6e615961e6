# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from d2defense.statistics.ranking import (
    area_interval,
    area_under_curve,
    roc_curve,
    share_found,
)


def some_scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Backdoored and clean ones, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    return rng.normal(1.5, 1, 35).round(1), rng.normal(0, 1, 30).round(1)


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_the_share_of_pairs_in_order_and_that_under_the_curve(seed):
    positives, negatives = some_scores(seed)
    wins = sum((p > n) + (p == n) / 2 for p, n in product(positives, negatives))
    area = area_under_curve(positives, negatives)
    assert area == pytest.approx(wins / len(positives) / len(negatives))
    assert np.trapezoid(*roc_curve(positives, negatives)[::-1]) == pytest.approx(area)


@pytest.mark.parametrize(
    ("rate", "count", "expected"),
    [
        # Of 10 clean ones at 0..9 none may be above: 12 and 10 are found.
        (0.05, 10, 0.5),
        # Of 10 one may be above, so the threshold is 8.
        (0.1, 10, 0.75),
        (1.0, 10, 1.0),
    ],
)
def test_found_at_a_rate_of_false_alarms(rate, count, expected):
    negatives = np.arange(count, dtype=float)
    assert share_found(np.array([12.0, 10.0, 8.5, 1.0]), negatives, rate) == expected


def test_equal_scores_are_not_found():
    assert share_found(np.array([3.0, 3.0]), np.array([3.0, 3.0]), 0.01) == 0.0


def test_the_area_s_interval_holds_the_true_area_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true, held = stats.norm.cdf(1.5 / np.sqrt(2)), 0
    for _ in range(300):
        area = area_under_curve(rng.normal(1.5, 1, 20), rng.normal(0, 1, 20))
        low, high = area_interval(float(area), 20, 20)
        held += low <= true <= high
    assert 0.92 <= held / 300 <= 0.99


def test_the_area_s_interval_does_not_collapse_at_perfect_separation():
    low, high = area_interval(1.0, 16, 16)
    assert 0.8 < low < 0.95
    assert high == 1.0
    assert area_interval(1.0, 64, 64).low > low
