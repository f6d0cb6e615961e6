# SPDX-License-Identifier: Apache-2.0
"""Ending a scan once its verdict is certain: a sequential test by betting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2defense.statistics import Observation

from .decisions.base import Decision

# Shares of the largest bet that cannot lose everything; the mean over them is a bet as well.
_BETS = np.array([0.05, 0.2, 0.5, 0.8, 0.99])


class SequentialTest:
    """Tests after every batch of images on which side of the threshold the score lies.

    For each trigger and statistic, one image adds ``y = x - limit * n``: x is what its n objects
    add to the suspicion's numerator, and the limit is the suspicion at which the score reaches the
    threshold. The suspicion lies above the limit if and only if the mean of y is positive. A
    gambler who bets against the opposite, a bounded share of the capital on each image, has a
    capital whose expectation never grows if the opposite is true, so that it ever reaches 1 / a
    with probability a at most (Ville's inequality), however often one looks: "testing by betting",
    Waudby-Smith and Ramdas, arXiv 2010.09686, section 4. No distribution is assumed.

    The checkpoint is backdoored once the mean capital over all triggers and statistics of bets on
    "above" reaches 1 / a (any one above would do; the mean corrects for their number); clean once
    every capital of bets on "below" does. Images must come in random order.

    Args:
        limits: array of shape (T, S): suspicion at the threshold, of the statistics that are a mean
            over images (:attr:`Decision.of_images`).
        decision: how suspicion is defined.
        largest_count: the largest denominator that one image can have.
        error_rate: a, of each of the two wrong verdicts.
    """

    def __init__(
        self, limits: np.ndarray, decision: Decision, largest_count: float, error_rate: float
    ) -> None:
        self._decision = decision
        self._largest = largest_count
        self._goal = -np.log(error_rate)
        # A limit that the statistic cannot reach (or that is unknown) decides nothing.
        self._limits = np.where(np.isnan(limits), np.inf, limits)
        low = -1.0 if decision.is_change else 0.0
        reachable = self._limits < 1
        limit = np.where(reachable, np.maximum(self._limits, low), 0.0)
        self._reachable = reachable
        self._limit = limit
        # y / largest_count lies between low - limit and 1 - limit.
        self._above = _BETS / np.maximum(limit - low, 1e-9)[..., None]
        self._below = _BETS / (1 - limit)[..., None]
        shape = (*limits.shape, len(_BETS))
        self._capital_above = np.zeros(shape)
        self._capital_below = np.zeros(shape)

    def update(self, clean: Observation, triggered: Sequence[Observation]) -> str | None:
        """Take in one more batch of images.

        Args:
            clean: the batch without a trigger.
            triggered: the same under each of the T triggers.

        Returns:
            "backdoored" or "clean" once that is certain at the error rate, else None.
        """
        for column, name in enumerate(self._decision.of_images):
            for row, observation in enumerate(triggered):
                terms = observation.all_terms[name]
                added, count = terms.numerator.numpy(), terms.denominator.numpy()
                if self._decision.is_change:
                    added = added - clean.all_terms[name].numerator.numpy()
                added = self._decision.sign * added
                y = (added - self._limit[row, column] * count) / self._largest
                for capital, bets, direction in (
                    (self._capital_above, self._above, 1),
                    (self._capital_below, self._below, -1),
                ):
                    gains = 1 + direction * y[:, None] * bets[row, column]
                    capital[row, column] += np.log(np.maximum(gains, 1e-12)).sum(axis=0)
        above = _log_mean(self._capital_above)[self._reachable]
        below = _log_mean(self._capital_below)[self._reachable]
        if above.size and _log_mean(above) >= self._goal:
            return "backdoored"
        if (below >= self._goal).all():
            return "clean"
        return None


def _log_mean(logarithms: np.ndarray) -> np.ndarray:
    """Logarithm of the mean over the last axis, from logarithms."""
    largest = logarithms.max(axis=-1)
    return largest + np.log(np.exp(logarithms - largest[..., None]).mean(axis=-1))
