# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2defense.detection.bootstrap import (
    STATISTICS,
    Bootstrap,
    image_terms,
    percentile_interval,
)
from d2defense.detection.observe import Observation
from d2defense.ops import InconsistencyResult, Terms

# Four images with 2, 0, 1 and 3 objects.
OFFSETS = [0, 2, 2, 3, 6]


@pytest.fixture
def observation():
    generator = torch.Generator().manual_seed(0)

    def uniform(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator)

    return Observation(
        InconsistencyResult(
            tau_sum=uniform(4).double() * 3,
            tau_count=torch.tensor([3, 0, 5, 2]),
            confident_sum=uniform(4).double() - 0.5,
            confident_count=torch.tensor([0, 1, 2, 4]),
            score_max=uniform(4),
            nonfinite=torch.zeros(4, dtype=torch.int64),
            histogram=torch.zeros(4, 2, dtype=torch.int64),
            target_objectness=uniform(6),
            target_foreground=uniform(6),
            target_true_class=uniform(6),
            target_matches=torch.tensor([3, 0, 1, 2, 0, 9], dtype=torch.int32),
            unmatched_foreground=torch.zeros(4, dtype=torch.int64),
        ),
        found=torch.tensor([True, False, True, True, False, True]),
        target_offsets=torch.tensor(OFFSETS),
    )


def by_hand(observation: Observation, images: list[int]) -> dict[str, float]:
    """Every statistic over a list of images, an image as often as it is listed."""
    result = observation.result
    objects = [g for image in images for g in range(OFFSETS[image], OFFSETS[image + 1])]
    matched = [g for g in objects if result.target_matches[g] > 0]

    def mean(values) -> float:
        values = [float(value) for value in values]
        return sum(values) / len(values) if values else math.nan

    def ratio(sums, counts) -> float:
        count = sum(int(counts[i]) for i in images)
        return sum(float(sums[i]) for i in images) / count if count else math.nan

    p, q = result.target_objectness, result.target_foreground
    return {
        "tau": ratio(result.tau_sum, result.tau_count),
        "confident_d": ratio(result.confident_sum, result.confident_count),
        "gap": mean(float(p[g]) - float(q[g]) for g in matched),
        "objects_found": mean(observation.found[g] for g in objects),
        "max_objectness": mean(p[g] for g in objects),
        "max_foreground": mean(q[g] for g in objects),
    }


def test_statistics_over_all_images(observation):
    expected = by_hand(observation, [0, 1, 2, 3])
    terms = image_terms(observation)
    assert set(terms) == set(STATISTICS) == set(expected)
    for name, value in expected.items():
        assert terms[name].ratio() == pytest.approx(value, rel=1e-6)
        assert terms[name].numerator.shape == terms[name].denominator.shape == (4,)


def test_statistics_over_resampled_images(observation):
    bootstrap = Bootstrap.draw(4, samples=50, seed=0)
    terms = image_terms(observation)
    for name in STATISTICS:
        got = bootstrap(terms[name]).tolist()
        for weights, value in zip(bootstrap.weights.long().tolist(), got, strict=True):
            drawn = [image for image in range(4) for _ in range(weights[image])]
            expected = by_hand(observation, drawn)[name]
            assert value == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_resamples_draw_as_many_images_with_replacement():
    bootstrap = Bootstrap.draw(20, samples=4000, seed=1)
    assert bootstrap.weights.shape == (4000, 20)
    assert (bootstrap.weights.sum(dim=1) == 20).all()
    # Each image's number of appearances is binomial: mean 1, variance 1 - 1 / 20.
    assert bootstrap.weights.mean().item() == pytest.approx(1)
    assert bootstrap.weights.var().item() == pytest.approx(0.95, rel=0.05)
    assert torch.equal(Bootstrap.draw(20, 4000, 1).weights, bootstrap.weights)
    assert not torch.equal(Bootstrap.draw(20, 4000, 2).weights, bootstrap.weights)


def test_interval_of_a_mean_is_that_of_the_textbook():
    """For the mean of many values, mean +- 1.96 standard errors."""
    values = torch.from_numpy(np.random.default_rng(0).normal(3, 2, 400))
    bootstrap = Bootstrap.draw(400, samples=4000, seed=0)
    samples = bootstrap(Terms(values, torch.ones(400, dtype=torch.float64)))
    low, high = percentile_interval(samples, 0.95)
    error = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - error, abs=0.02)
    assert high == pytest.approx(values.mean().item() + error, abs=0.02)


def test_percentiles_leave_out_resamples_without_a_value():
    samples = torch.tensor([math.nan, *range(101), math.nan], dtype=torch.float64)
    assert percentile_interval(samples, 0.9) == pytest.approx((5, 95))
    assert percentile_interval(samples, 0.5) == pytest.approx((25, 75))
    assert percentile_interval(torch.full((9,), math.nan), 0.9) is None
