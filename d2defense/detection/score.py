# SPDX-License-Identifier: Apache-2.0
"""The one number that a checkpoint is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d2defense.statistics import Observation

from .bootstrap import Bootstrap, percentile_interval
from .by_class import CLASS_FALLS, largest_class_fall, resampled_class_falls
from .decisions.base import Decision, largest

# What a class must lose beyond all objects to be named as the victim.
_STANDS_OUT = 0.3


def statistic(
    clean: Observation, seen: Observation, name: str, bootstrap: Bootstrap | None = None
) -> Tensor:
    """A statistic as a number, float64 (), or over resamples of the images, (B,).

    Args:
        clean: the images as they are, from where on a class falls.
        seen: the same, or under a trigger.
        name: of the statistic.
        bootstrap: resamples of the images; None for all images once.

    Raises:
        KeyError: it was not observed.
    """
    if name in CLASS_FALLS:
        of = CLASS_FALLS[name]
        if bootstrap is None:
            return 0.0 - torch.tensor(largest_class_fall(clean, seen, of).fall, dtype=torch.float64)
        return 0.0 - resampled_class_falls(clean, seen, of, bootstrap)
    terms = seen.all_terms[name]
    if bootstrap is None:
        return torch.tensor(terms.ratio(), dtype=torch.float64)
    return bootstrap(terms)


def suspicions(
    clean: Observation,
    triggered: Mapping[str, Observation],
    decision: Decision,
    bootstrap: Bootstrap | None = None,
) -> np.ndarray:
    """What a decision holds against a detector.

    Args:
        clean: the images without a trigger.
        triggered: the same under each of T triggers, by name.
        decision: how suspicion is defined.
        bootstrap: resamples of the images; None for all images once.

    Returns:
        Array of shape (T, S), or (B, T, S) over resamples.
    """

    def numbers(seen: Observation) -> np.ndarray:
        columns = [statistic(clean, seen, name, bootstrap) for name in decision.statistics]
        return torch.stack(columns, dim=-1).numpy()

    after = np.stack([numbers(seen) for seen in triggered.values()], axis=-2)
    return decision.suspicion(numbers(clean), after)


def largest_excess(
    excess: Callable[[Bootstrap | None], np.ndarray], bootstrap: Bootstrap, confidence: float
) -> tuple[float, tuple[float, float]]:
    """The largest suspicion beyond what is usual over triggers and statistics, and its interval.

    Args:
        excess: from resamples of the images, or None for all images once, to an array of shape
            (..., T, S).
        bootstrap: resamples; the maximum is taken anew on each.
        confidence: level of the interval.
    """
    value = float(largest(excess(None)))
    samples = torch.from_numpy(largest(excess(bootstrap)))
    return value, percentile_interval(samples, confidence) or (value, value)


@dataclass(frozen=True)
class Score:
    """What a survey of a detector amounts to.

    Attributes:
        value: the score of the checkpoint.
        interval: over resamples of the images; the maximum is taken anew on each.
        of_triggers: the score that each trigger alone would give, by name.
        worst: the trigger that gives the score.
        victim_class: index of the class whose objects give it; None for all objects.
    """

    value: float
    interval: tuple[float, float]
    of_triggers: dict[str, float]
    worst: str
    victim_class: int | None = None


def checkpoint_score(
    clean: Observation,
    triggered: Mapping[str, Observation],
    decision: Decision,
    baseline: np.ndarray,
    bootstrap: Bootstrap,
    confidence: float,
) -> Score:
    """The largest suspicion over triggers and statistics, beyond what clean detectors show.

    Calibration scores clean detectors by the same maximum over the same bank, which accounts for
    the number of triggers and statistics.

    Args:
        clean: the images without a trigger.
        triggered: the same under each of T triggers, by name.
        decision: how to score.
        baseline: array of shape (T, S): mean suspicion of clean detectors.
        bootstrap: resamples of the images.
        confidence: level of the interval.
    """

    def excess(resamples: Bootstrap | None) -> np.ndarray:
        return suspicions(clean, triggered, decision, resamples) - baseline

    values = excess(None)
    score, interval = largest_excess(excess, bootstrap, confidence)
    alone = dict(zip(triggered, largest(values[:, None]).tolist(), strict=True))
    worst = max(alone, key=alone.__getitem__)
    of_worst = np.nan_to_num(values[list(triggered).index(worst)], nan=-np.inf)
    shown_by = decision.statistics[int(of_worst.argmax())]
    victim = None
    if shown_by in CLASS_FALLS:
        of = CLASS_FALLS[shown_by]
        most = largest_class_fall(clean, triggered[worst], of)
        of_all = statistic(clean, clean, of) - statistic(clean, triggered[worst], of)
        # Of several classes that all react, one reacts most by chance.
        victim = most.category if most.fall - float(of_all) > _STANDS_OUT else None
    return Score(score, interval, alone, worst, victim)
