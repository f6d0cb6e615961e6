# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from d2defense.study.measures import (
    auc,
    auc_interval,
    recovered,
    roc_curve,
    true_positive_rate,
)


def evaluation(found: float) -> dict:
    return {"triggered": {"objects_found": found}, "clean": {"objects_found": 1.0}}


class TestRecovered:
    @pytest.mark.parametrize(
        ("before", "after", "clean", "share"),
        [(0.2, 0.2, 0.8, 0.0), (0.2, 0.8, 0.8, 1.0), (0.2, 0.5, 0.8, 0.5), (0.2, 0.9, 0.8, 7 / 6)],
    )
    def test_is_the_share_of_what_the_attack_took(self, before, after, clean, share) -> None:
        got = recovered(*map(evaluation, (before, after, clean)))
        assert got == pytest.approx(share)

    def test_is_unknown_where_something_is_missing_or_nothing_was_taken(self) -> None:
        assert recovered(evaluation(0.5), None, evaluation(0.8)) is None
        assert recovered(evaluation(0.8), evaluation(0.8), evaluation(0.8)) is None


class TestROC:
    def scores(self, seed: int, count: int = 30) -> tuple[list[float], list[float]]:
        generator = np.random.default_rng(seed)
        # Rounded, so that there are ties.
        return (
            generator.normal(0, 1, count).round(1).tolist(),
            generator.normal(1.5, 1, count + 5).round(1).tolist(),
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_area_is_the_share_of_pairs_in_the_right_order(self, seed: int) -> None:
        clean, backdoored = self.scores(seed)
        wins = sum((b > c) + (b == c) / 2 for b, c in product(backdoored, clean))
        assert auc(clean, backdoored) == pytest.approx(wins / len(clean) / len(backdoored))
        # The same area, under the curve that is drawn.
        assert np.trapezoid(*roc_curve(clean, backdoored)[::-1]) == pytest.approx(
            auc(clean, backdoored)
        )

    def test_true_positives_are_counted_at_the_false_alarms_allowed(self) -> None:
        clean, backdoored = [0.0, 0.1, 0.2, 0.9], [0.5, 0.85, 0.95, 1.0]
        assert true_positive_rate(clean, backdoored, 0.01) == 0.5
        assert true_positive_rate(clean, backdoored, 0.25) == 1.0

    def test_interval_holds_the_true_area_as_often_as_it_says(self) -> None:
        generator = np.random.default_rng(0)
        true = stats.norm.cdf(1.5 / np.sqrt(2))
        held = 0
        for _ in range(300):
            clean, backdoored = generator.normal(0, 1, 20), generator.normal(1.5, 1, 20)
            low, high = auc_interval(clean, backdoored)
            held += low <= true <= high
        assert 0.92 <= held / 300 <= 0.99

    def test_interval_does_not_collapse_at_perfect_separation(self) -> None:
        low, high = auc_interval([0.0] * 16, [1.0] * 16)
        assert 0.8 < low < 0.95
        assert high == 1.0
        assert auc_interval([0.0] * 64, [1.0] * 64).low > low
