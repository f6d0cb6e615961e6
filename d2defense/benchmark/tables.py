# SPDX-License-Identifier: Apache-2.0
"""Summaries of tidy results: each is a group-by of rows, whatever tasks, methods and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from d2defense.registry import TASK_REGISTRY

from .results import FAILED, ResultRow

#: What rows are grouped by, with the words for the group; "" for all of them together.
GROUPINGS = {
    "": "all",
    "effect": "effect",
    "family": "trigger family",
    "kind": "detector",
    "schedule": "schedule",
}
# Of these, what clean detectors have as well: they are held against their like.
_OF_CLEAN = ("kind",)
_FALSE_ALARM_RATES = (0.01, 0.05)
_SAMPLES = 1000
_CONFIDENCE = 0.95
_BACKDOORED = "backdoored"
_NOT_TAKEN = "backdoored, did not take"


@dataclass(frozen=True)
class Summary:
    """One number of one method over a group of detectors.

    Attributes:
        task: of the rows.
        method: of the rows.
        by: key of :data:`GROUPINGS`.
        group: value of it.
        truth: of the detectors that a mean is over; "" for a number that compares two.
        metric: "AUC", "found at 1 %", or the mean of a metric of the rows.
        value: of it; None for no data.
        low: lower end of its interval, None without one.
        high: upper end.
        positives: backdoored detectors whose attack took.
        negatives: clean and spurious ones.
    """

    task: str
    method: str
    by: str
    group: str
    truth: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    positives: int
    negatives: int

    def as_dict(self) -> dict[str, Any]:
        """The summary for CSV and JSON."""
        return asdict(self)


def truth_of(row: ResultRow) -> str:
    """What a row's detector is; one whose attack did not take is neither the one nor the other."""
    if row.truth == _BACKDOORED and row.took is False:
        return _NOT_TAKEN
    return row.truth or "withheld"


def summarise(rows: Sequence[ResultRow]) -> list[Summary]:
    """All summaries of some rows.

    A metric that its task ranks detectors by (:attr:`Task.ranked_by`) gives AUC and the share
    found at given false-alarm rates, with intervals by bootstrap over detectors; of every other
    one there is the mean over detectors of each truth. A detector that a method failed on counts
    as one that it gave its least score to.
    """
    found = []
    for (task, method), of_method in grouped(rows, lambda row: (row.task, row.method)):
        for by in GROUPINGS:
            values = (
                [""] if not by else sorted({getattr(row, by) or "" for row in of_method} - {""})
            )
            for value in values:
                chosen = [row for row in of_method if _is_of(row, by, value)]
                found += _of_group(task, method, by, value, chosen)
    return found


def grouped(rows: Iterable[ResultRow], key: Callable[[ResultRow], Any]) -> list[tuple[Any, list]]:
    """The rows by key, in order of the keys."""
    groups: dict[Any, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items(), key=lambda item: str(item[0]))


def area_under_curve(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Probability that a backdoored detector scores above a clean one; ties count half.

    Args:
        positives: scores of shape (..., P).
        negatives: scores of shape (..., N).

    Returns:
        Array of shape (...).
    """
    first, second = positives[..., :, None], negatives[..., None, :]
    return (first > second).mean(axis=(-2, -1)) + (first == second).mean(axis=(-2, -1)) / 2


def share_found(positives: np.ndarray, negatives: np.ndarray, rate: float) -> np.ndarray:
    """Share of backdoored detectors above a threshold that at most ``rate`` of clean ones exceed.

    With fewer than ``1 / rate`` clean detectors none of them may exceed it. Shapes are those of
    :func:`area_under_curve`.
    """
    count = negatives.shape[-1]
    allowed = int(np.floor(rate * count + 1e-9))
    if allowed >= count:
        return np.ones(positives.shape[:-1])
    threshold = np.sort(negatives, axis=-1)[..., count - 1 - allowed, None]
    return (positives > threshold).mean(axis=-1)


def _is_of(row: ResultRow, by: str, value: str) -> bool:
    if not by or getattr(row, by) == value:
        return True
    return by not in _OF_CLEAN and row.truth != _BACKDOORED


def _of_group(
    task: str, method: str, by: str, group: str, rows: Sequence[ResultRow]
) -> list[Summary]:
    ranked = TASK_REGISTRY.get(task).ranked_by
    found: list[Summary] = []

    def add(truth: str, metric: str, values: tuple, counts: tuple[int, int]) -> None:
        found.append(Summary(task, method, by, group, truth, metric, *values, *counts))

    for metric in ranked:
        of_metric = [row for row in rows if row.metric in (metric, FAILED)]
        scores = [row.value for row in of_metric if row.metric == metric and row.value is not None]
        least = min(scores, default=0.0)

        def of(*truths: str, rows=of_metric, least=least) -> np.ndarray:
            chosen = [row for row in rows if truth_of(row) in truths]
            return np.array([least if row.value is None else row.value for row in chosen])

        positives, negatives = of(_BACKDOORED), of("clean", "spurious")
        counts = len(positives), len(negatives)
        if all(counts):
            for name, statistic in _ranking_statistics().items():
                add("", name, _with_interval(statistic, positives, negatives), counts)
    others = [row for row in rows if row.metric not in (*ranked, FAILED)]
    for metric, of_metric in grouped(others, lambda row: row.metric):
        for truth, chosen in grouped(of_metric, truth_of):
            values = np.array([row.value for row in chosen if row.value is not None])
            counts = (len(values), 0) if truth == _BACKDOORED else (0, len(values))
            if len(values):
                add(truth, metric, _with_interval(_mean, values), counts)
    seconds = {row.cell: row.seconds for row in rows if row.metric != FAILED}
    if seconds:
        mean = float(np.mean(list(seconds.values())))
        add("", "seconds", (mean, None, None), (0, len(seconds)))
    failures = len({row.cell for row in rows if row.metric == FAILED})
    if failures:
        add("", FAILED, (float(failures), None, None), (0, failures))
    return found


def _ranking_statistics() -> dict[str, Callable[..., np.ndarray]]:
    at = {
        f"found at {100 * rate:.0f} %": partial(share_found, rate=rate)
        for rate in _FALSE_ALARM_RATES
    }
    return {"AUC": area_under_curve, **at}


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def _with_interval(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray
) -> tuple[float, float | None, float | None]:
    """A statistic with its percentile interval; detectors of each sample are drawn anew."""
    rng = np.random.default_rng(0)
    drawn = statistic(*(rng.choice(each, (_SAMPLES, len(each))) for each in samples))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(statistic(*samples)), float(low), float(high)
