# SPDX-License-Identifier: Apache-2.0
"""The threshold holds the rate that it says, and says where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from d2defense.screening import FitError, ScoreNull


@pytest.mark.parametrize("count", [99, 150, 250])
def test_clean_images_to_come_are_alarms_at_most_at_the_rate(count):
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        null = ScoreNull.of(rng.gumbel(size=count))
        rates.append(np.exp(-np.exp(-null.threshold(0.01))))  # share below, of a Gumbel variable
    # floor(0.01 (n + 1)) of n + 1 ranks: 1, 1 and 2 of them.
    expected = int(0.01 * (count + 1)) / (count + 1)
    assert 1 - np.mean(rates) == pytest.approx(expected, abs=0.0015)


def test_too_few_images_are_told_how_many_it_takes():
    with pytest.raises(FitError, match=r"98 clean images .* of 0\.01: it takes 99"):
        ScoreNull.of(range(98)).threshold(0.01)
    assert ScoreNull.of(range(99)).threshold(0.01) == 98


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2])
def test_a_rate_is_a_share(rate):
    with pytest.raises(FitError, match="false alarm rate"):
        ScoreNull.of(range(200)).threshold(rate)


def test_p_values_count_equal_scores_as_high():
    null = ScoreNull.of([1, 2, 2, 3])
    assert [null.p_value(score) for score in (0, 2, 2.5, 3, 4)] == [1.0, 0.8, 0.4, 0.4, 0.2]


def test_nan_is_no_score():
    with pytest.raises(FitError):
        ScoreNull.of([1.0, float("nan")])
