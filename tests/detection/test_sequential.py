# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from d2defense.detection.decisions.fall import Fall
from d2defense.detection.decisions.paper import PaperDecision
from d2defense.detection.sequential import SequentialTest
from d2defense.statistics import Observation, Terms

LIMIT = 0.1


def observations(falls: np.ndarray, counts: np.ndarray) -> tuple[Observation, list[Observation]]:
    """A batch whose images hold ``counts`` objects with these mean falls, (T, G)."""
    ones = torch.from_numpy(counts.astype(float))

    def observation(values: np.ndarray) -> Observation:
        terms = Terms(torch.from_numpy(values * counts), ones)
        nothing = Terms(torch.zeros_like(ones), torch.zeros_like(ones))
        return Observation({"max_foreground": terms, "true_class": nothing}, torch.zeros(1))

    return observation(np.ones_like(counts, dtype=float)), [observation(1 - f) for f in falls]


def play(falls: np.ndarray, counts: np.ndarray, rate: float, batch: int = 8):
    """(verdict, images used) of a test that sees the images batch by batch."""
    limits = np.stack([np.full(len(falls), LIMIT), np.full(len(falls), np.nan)], axis=1)
    test = SequentialTest(limits, Fall(), counts.max(), rate)
    for start in range(0, counts.size, batch):
        part = slice(start, start + batch)
        label = test.update(*observations(falls[:, part], counts[part]))
        if label:
            return label, min(start + batch, counts.size)
    return None, counts.size


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("kind", ["all images a little", "few images completely"])
def test_wrong_verdicts_are_as_rare_as_promised(kind, rate):
    """Detectors that lose just as much as the limit: either verdict is wrong with that rate.

    The second kind is the hardest: most images show nothing at all.
    """
    rng = np.random.default_rng(0)
    trials, images = 120, 200
    labels = []
    for _ in range(trials):
        counts = np.full(images, 2)
        if kind == "all images a little":
            falls = rng.uniform(0, 2 * LIMIT, (3, images))
        else:
            falls = (rng.uniform(size=(3, images)) < LIMIT).astype(float)
        labels.append(play(falls, counts, rate, batch=20)[0])
    allowed = rate + 4 * (rate * (1 - rate) / trials) ** 0.5
    assert labels.count("clean") / trials <= allowed
    assert labels.count("backdoored") / trials <= allowed


@pytest.mark.parametrize(
    ("falls", "label"),
    [((0.0, 0.0), "clean"), ((0.0, 0.6), "backdoored"), ((0.7, 0.5), "backdoored")],
)
def test_clear_cases_end_early(falls, label):
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 6, 200)
    values = np.stack([np.clip(rng.normal(mean, 0.05, 200), 0, 1) for mean in falls])
    verdict, used = play(values, counts, 0.05)
    assert verdict == label
    assert used < 100


def test_one_batch_or_many_give_the_same_capital():
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 6, 64)
    values = np.clip(rng.normal(0.02, 0.05, (2, 64)), 0, 1)
    _, used = play(values, counts, 0.05, batch=1)
    assert play(values, counts, 0.05, batch=used)[0] == play(values, counts, 0.05, batch=1)[0]
    assert play(values[:, : used - 1], counts[: used - 1], 0.05, batch=64)[0] is None


def test_limits_that_cannot_be_reached_are_below():
    counts = np.ones(8)
    test = SequentialTest(np.array([[1.2, np.nan]]), Fall(), 1, 0.05)
    assert test.update(*observations(np.ones((1, 8)), counts)) == "clean"


def test_tau_itself_is_tested_for_the_papers_decision():
    def batch(tau: float) -> Observation:
        counts = torch.full((40,), 5.0, dtype=torch.float64)
        return Observation({"tau": Terms(tau * counts, counts)}, torch.zeros(1))

    for tau, label in ((0.1, "clean"), (0.9, "backdoored")):
        test = SequentialTest(np.array([[0.5]]), PaperDecision(), 5, 0.05)
        assert test.update(batch(0.3), [batch(tau)]) == label
