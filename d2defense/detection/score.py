# SPDX-License-Identifier: Apache-2.0
"""The one number that a checkpoint is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d2defense.statistics import Observation, Terms

from .bootstrap import Bootstrap, percentile_interval
from .decisions.base import Decision, largest


def stack_ratios(
    terms: Mapping[str, Terms], statistics: Sequence[str], bootstrap: Bootstrap | None = None
) -> np.ndarray:
    """Statistics as numbers.

    Args:
        terms: of every statistic.
        statistics: which ones.
        bootstrap: resamples of the images; None for all images once.

    Returns:
        Array of shape (S,), or (B, S) over resamples.
    """
    if bootstrap is None:
        return np.array([terms[name].ratio() for name in statistics])
    columns: list[Tensor] = [bootstrap(terms[name]) for name in statistics]
    return torch.stack(columns, dim=-1).numpy()


@dataclass(frozen=True)
class Score:
    """What a survey of a detector amounts to.

    Attributes:
        value: the score of the checkpoint.
        interval: over resamples of the images; the maximum is taken anew on each.
        of_triggers: the score that each trigger alone would give, by name.
        worst: the trigger that gives the score.
    """

    value: float
    interval: tuple[float, float]
    of_triggers: dict[str, float]
    worst: str


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
        before = stack_ratios(clean.terms, decision.statistics, resamples)
        after = [stack_ratios(o.terms, decision.statistics, resamples) for o in triggered.values()]
        return decision.suspicion(before, np.stack(after, axis=-2)) - baseline

    values = excess(None)
    alone = dict(zip(triggered, largest(values[:, None]).tolist(), strict=True))
    worst = max(alone, key=alone.__getitem__)
    samples = torch.from_numpy(largest(excess(bootstrap)))
    interval = percentile_interval(samples, confidence) or (alone[worst], alone[worst])
    return Score(alone[worst], interval, alone, worst)
