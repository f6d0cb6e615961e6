# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2defense.detection.bootstrap import Bootstrap, percentile_interval
from d2defense.statistics import Terms


def test_statistic_over_resampled_images():
    """A ratio of sums over a list of images, an image as often as it was drawn."""
    numerator = [0.5, 0.0, 2.0, 1.25]
    denominator = [2.0, 0.0, 3.0, 1.0]
    bootstrap = Bootstrap.draw(4, samples=200, seed=0)
    terms = Terms(*(torch.tensor(x, dtype=torch.float64) for x in (numerator, denominator)))
    got = bootstrap(terms).tolist()
    for weights, value in zip(bootstrap.weights.long().tolist(), got, strict=True):
        drawn = [image for image in range(4) for _ in range(weights[image])]
        count = sum(denominator[image] for image in drawn)
        expected = sum(numerator[image] for image in drawn) / count if count else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


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
