# SPDX-License-Identifier: Apache-2.0
"""The definitions on a case small enough for pencil and paper."""

from __future__ import annotations

import math

import pytest
import torch

from d2defense.ops import extension_available, inconsistency, inconsistency_reference
from d2defense.statistics import confident_d, gap, mean_foreground, mean_objectness, tau

IMPLEMENTATIONS = [inconsistency_reference]
if extension_available():
    IMPLEMENTATIONS.append(inconsistency)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda f: f.__name__)
def result(request):
    """Two images. In the first the RPN sees an object that the box head misses (d = 0.9 - 0.3),
    both agree on a second box (0.85, 0.80), and the head sees one more far away (0.2, 0.7). The
    second holds one box that nobody sees, and a target that nothing matches."""
    p = [0.9, 0.85, 0.2, 0.05]
    q = [0.3, 0.8, 0.7, 0.02]
    third = [0.25, 0.5, 0.1, 0.5]  # of q, how much belongs to class 0
    rows = [
        [math.log(b * c), math.log(b * (1 - c)), math.log(1 - b)]
        for b, c in zip(q, third, strict=True)
    ]
    return request.param(
        torch.tensor([logit(x) for x in p]),
        torch.tensor(rows),
        torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [90, 90, 99, 99], [0, 0, 5, 5]]),
        torch.tensor([0, 3, 4]),
        torch.tensor([[0.0, 0, 10, 8], [20, 20, 30, 30], [50, 50, 60, 60]]),
        torch.tensor([0, 2, 3]),
        torch.tensor([0, -1, 1]),
        num_bins=10,
    )


def test_per_group_statistics(result):
    assert result.tau_sum.tolist() == pytest.approx([0.6 + 0.5, 0.0])
    assert result.tau_count.tolist() == [2, 0]
    assert result.confident_sum.tolist() == pytest.approx([0.6 + 0.05, 0.0])
    assert result.confident_count.tolist() == [2, 0]
    assert result.score_max.tolist() == pytest.approx([0.6, 0.03])
    assert result.nonfinite.tolist() == [0, 0]
    assert result.histogram.sum(1).tolist() == [3, 1]
    assert result.unmatched_foreground.tolist() == [1, 0]


def test_per_target_statistics(result):
    assert result.target_matches.tolist() == [1, 1, 0]
    assert result.target_objectness.tolist() == pytest.approx([0.9, 0.85, 0.0])
    assert result.target_foreground.tolist() == pytest.approx([0.3, 0.8, 0.0])
    assert result.target_true_class.tolist() == pytest.approx([0.075, math.nan, 0.0], nan_ok=True)


def test_statistics_of_all_images(result):
    assert tau(result) == pytest.approx(0.55)
    assert confident_d(result) == pytest.approx(0.325)
    assert gap(result) == pytest.approx((0.6 + 0.05) / 2)
    assert mean_objectness(result) == pytest.approx((0.9 + 0.85) / 3)
    assert mean_foreground(result) == pytest.approx((0.3 + 0.8) / 3)


def test_statistics_of_nothing_are_nan(make_problem):
    nothing = inconsistency_reference(**make_problem([0], [0]))
    for statistic in (tau, confident_d, gap, mean_objectness, mean_foreground):
        assert math.isnan(statistic(nothing))
