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

# A detector that gives its objects less than this on clean images cannot show what it would lose.
LEAST_FOREGROUND = 0.1


@dataclass(frozen=True)
class Decision:
    """A way to turn statistics into a score: the largest suspicion over statistics and triggers.

    Attributes:
        name: by which ``DEFENSE.DECISION`` asks for it.
        title: in words.
        statistics: names of the statistics that it looks at.
        sign: 1 if they rise under an attack, -1 if they fall.
        is_change: whether the change from the clean images counts, or the statistic itself.
        settings: the settings of an observation that its statistics depend on.
        minimum_deviation: least standard deviation of clean detectors' scores: a few that were
            trained alike on one dataset show less of it than there is between datasets and
            architectures.
    """

    name: str
    title: str
    statistics: tuple[str, ...]
    sign: int
    is_change: bool
    settings: tuple[str, ...]
    minimum_deviation: float

    def suspicion(self, clean: np.ndarray, triggered: np.ndarray) -> np.ndarray:
        """How far each statistic goes the way that an attack moves it.

        Args:
            clean: of shape (..., S), without a trigger.
            triggered: of shape (..., T, S), under each trigger.

        Returns:
            Array of shape (..., T, S); NaN for no data.
        """
        base = clean[..., None, :] if self.is_change else 0.0
        return self.sign * (triggered - base)

    def ceiling(self, clean: Mapping[str, float], baseline: np.ndarray) -> float:
        """The score that a detector would have if every object vanished.

        Args:
            clean: its statistics on the images as they are, by name.
            baseline: array of shape (T, S): mean suspicion of clean detectors.
        """
        if not self.is_change:
            return 1.0 if clean["max_foreground"] >= LEAST_FOREGROUND else 0.0
        before = np.array([clean[name] for name in self.statistics])
        return float(largest(self.suspicion(before, np.zeros(baseline.shape)) - baseline))


#: The default: see docs/method.md for the comparison that it rests on.
FALL = Decision(
    name="fall",
    title="largest fall of max_foreground or true_class over the triggers, beyond clean detectors'",
    statistics=("max_foreground", "true_class"),
    sign=-1,
    is_change=True,
    settings=("iou_threshold",),
    minimum_deviation=0.02,
)
#: The paper's backdoor score against one threshold (arXiv 2409.16057, section 3).
PAPER = Decision(
    name="paper",
    title="largest tau under a trigger",
    statistics=("tau",),
    sign=1,
    is_change=False,
    settings=("epsilon", "topk"),
    minimum_deviation=0.05,
)
DECISIONS = {decision.name: decision for decision in (FALL, PAPER)}


def largest(excess: np.ndarray) -> np.ndarray:
    """The largest value over triggers and statistics, (..., T, S) to (...); 0 without any data."""
    values = np.nan_to_num(excess, nan=-np.inf).max(axis=(-2, -1))
    return np.where(np.isfinite(values), values, 0.0)


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
