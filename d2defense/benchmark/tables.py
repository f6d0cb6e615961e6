# SPDX-License-Identifier: Apache-2.0
"""Summaries of tidy results: each is a group-by of rows, whatever tasks, methods and metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from d2defense.registry import TASK_REGISTRY
from d2defense.statistics.ranking import (
    CONFIDENCE,
    area_interval,
    area_under_curve,
    share_found,
)
from d2defense.study.results import FAILED, ResultRow

_FALSE_ALARM_RATES = (0.01, 0.05)
_SAMPLES = 1000
BACKDOORED = "backdoored"
NEGATIVES = ("clean", "spurious")
_NOT_TAKEN = "backdoored, did not take"


@dataclass(frozen=True)
class Grouping:
    """Something that rows are grouped by.

    Attributes:
        title: words for it.
        of: the group of a row; "" where it has none.
        of_negatives: whether clean detectors have it as well: they are held against their like.
        of_weak: whether attacks that did not take count as well.
        tells_apart: whether one detector has rows of several groups. Then all other groupings count
            those of the last group alone, in :func:`group_order`: the most images, for one.
    """

    title: str
    of: Callable[[ResultRow], str]
    of_negatives: bool = False
    of_weak: bool = False
    tells_apart: bool = False


def _fact(name: str) -> Callable[[ResultRow], str]:
    return lambda row: getattr(row, name) or ""


def _condition(name: str, unit: str = "") -> Callable[[ResultRow], str]:
    return lambda row: f"{row.conditions[name]}{unit}" if name in row.conditions else ""


def _tells_apart(title: str, of: Callable[[ResultRow], str]) -> Grouping:
    return Grouping(title, of, of_negatives=True, tells_apart=True)


#: What rows are grouped by; "" is all of them together.
GROUPINGS = {
    "": Grouping("all", lambda row: "", of_negatives=True),
    "effect": Grouping("effect", _fact("effect")),
    "family": Grouping("trigger family", _fact("family")),
    "kind": Grouping("detector", _fact("kind"), of_negatives=True),
    "schedule": Grouping("schedule", _fact("schedule")),
    "strength": Grouping("strength of the attack", _fact("strength"), of_weak=True),
    "dataset": Grouping("images of", _fact("dataset"), of_negatives=True),
    "images": _tells_apart("images given", lambda row: f"{row.images} images"),
    "labels": _tells_apart("labels", _condition("labels")),
    "later": _tells_apart("later training", _condition("later_steps", " steps")),
    "tested": _tells_apart("images measured on", _condition("test_images", " images")),
    "budget": _tells_apart(
        "budget", lambda row: "no limit" if row.budget is None else f"{row.budget:g} s"
    ),
    "part": _tells_apart("part of the method", _fact("part")),
}


@dataclass(frozen=True)
class Summary:
    """One number of one method over a group of detectors.

    Attributes:
        task: of the rows.
        method: of the rows, with its own settings if it had any.
        by: key of :data:`GROUPINGS`.
        group: value of it.
        truth: of the detectors that a mean is over; "" for a number that compares two.
        metric: "AUC", "found at 1 %", or the mean of a metric of the rows.
        value: of it; None for no data.
        low: lower end of its interval, None without one.
        high: upper end.
        positives: backdoored detectors whose attack took; grouped by strength, all of them.
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
    if row.truth == BACKDOORED and row.took is False:
        return _NOT_TAKEN
    return row.truth or "withheld"


def summarise(rows: Sequence[ResultRow]) -> list[Summary]:
    """All summaries of some rows.

    A metric that its task ranks detectors by (:attr:`Task.ranked_by`) gives AUC and the share
    found at given false-alarm rates; of every other one there is the mean over detectors of each
    truth. Intervals: Newcombe's of an area, Wilson's of a mean of zeros and ones, else by bootstrap
    over detectors. A detector that a method failed on counts as one that it gave its least score
    to; of several rows of one detector, with other seeds, the mean counts.
    """
    found = []
    for (task, method), of_method in grouped(rows, lambda row: (row.task, row.variant)):
        for by, grouping in GROUPINGS.items():
            usual = usual_rows(of_method, but=by)
            values = {grouping.of(row) for row in usual} - {""} if by else {""}
            for value in sorted(values, key=group_order):
                chosen = [row for row in usual if _is_of(row, by, value)]
                found += _of_group(task, method, by, value, chosen)
    return found


def usual_rows(rows: Sequence[ResultRow], but: str = "") -> list[ResultRow]:
    """The rows of one method, of several on one detector those of the last groups alone.

    Args:
        rows: of the method.
        but: key of a grouping of which all groups stay.
    """
    for by, grouping in GROUPINGS.items():
        if rows and grouping.tells_apart and by != but:
            last = max((grouping.of(row) for row in rows), key=group_order)
            rows = [row for row in rows if grouping.of(row) == last]
    return list(rows)


def group_order(group: str) -> tuple[bool, float, str]:
    """Groups in order: numbers by their size, then words, then what is of no group."""
    number = re.match(r"\d+(\.\d+)?", group)
    return not group, float(number[0]) if number else math.inf, group


def grouped(rows: Iterable[Any], key: Callable[[Any], Any]) -> list[tuple[Any, list]]:
    """The rows by key, in order of the keys."""
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items(), key=lambda item: str(item[0]))


def _is_of(row: ResultRow, by: str, value: str) -> bool:
    grouping = GROUPINGS[by]
    if grouping.of(row) == value or (by == "part" and row.metric == FAILED):
        return True
    return not grouping.of_negatives and row.truth != BACKDOORED


def _of_group(
    task: str, method: str, by: str, group: str, rows: Sequence[ResultRow]
) -> list[Summary]:
    ranked, grouping = TASK_REGISTRY.get(task).ranked_by, GROUPINGS[by]
    found: list[Summary] = []

    def add(truth: str, metric: str, value: float, interval: Any, counts: tuple[int, int]) -> None:
        low, high = interval or (None, None)
        summary = Summary(task, method, by, group, truth, metric, value, low, high, *counts)
        found.append(summary)

    def truth(row: ResultRow) -> str:
        return BACKDOORED if grouping.of_weak and row.truth == BACKDOORED else truth_of(row)

    for metric in ranked:
        of_metric = [row for row in rows if row.quantity in (metric, FAILED)]
        least = min((row.value for row in of_metric if row.value is not None), default=0.0)
        positives = _values([row for row in of_metric if truth(row) == BACKDOORED], least)
        negatives = _values([row for row in of_metric if truth(row) in NEGATIVES], least)
        counts = len(positives), len(negatives)
        if all(counts):
            area = float(area_under_curve(positives, negatives))
            add("", "AUC", area, area_interval(area, *counts), counts)
            for rate in _FALSE_ALARM_RATES:
                share, interval = _share_found(positives, negatives, rate)
                add("", f"found at {100 * rate:.0f} %", share, interval, counts)
    others = [row for row in rows if row.quantity not in (*ranked, FAILED)]
    for metric, of_metric in grouped(others, lambda row: row.quantity):
        for name, chosen in grouped(of_metric, truth):
            values = _values([row for row in chosen if row.value is not None])
            is_told = grouping.of_negatives or name == BACKDOORED
            if len(values) and is_told:
                counts = (len(values), 0) if name == BACKDOORED else (0, len(values))
                add(name, metric, float(values.mean()), _mean_interval(values), counts)
    if by == "part":
        return found
    seconds = {row.cell: row.seconds for row in rows if row.metric != FAILED}
    if seconds:
        add("", "seconds", float(np.mean(list(seconds.values()))), None, (0, len(seconds)))
    failures = len({row.cell for row in rows if row.metric == FAILED})
    if failures:
        add("", FAILED, float(failures), None, (0, failures))
    return found


def _values(rows: Sequence[ResultRow], missing: float = 0.0) -> np.ndarray:
    """One value a detector."""
    of_detector = grouped(rows, lambda row: (row.zoo, row.detector))
    return np.array(
        [np.mean([missing if r.value is None else r.value for r in own]) for _, own in of_detector]
    )


def _share_found(
    positives: np.ndarray, negatives: np.ndarray, rate: float
) -> tuple[float, tuple[float, float]]:
    """With its percentile interval; detectors of either nature are drawn anew."""
    rng = np.random.default_rng(0)
    drawn = share_found(
        *(rng.choice(each, (_SAMPLES, len(each))) for each in (positives, negatives)), rate
    )
    return float(share_found(positives, negatives, rate)), _percentiles(drawn)


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    if np.isin(values, (0.0, 1.0)).all():
        # Wilson's, which does not collapse at 0 and 1.
        found = stats.binomtest(int(values.sum()), len(values))
        return tuple(found.proportion_ci(CONFIDENCE, method="wilson"))
    rng = np.random.default_rng(0)
    return _percentiles(rng.choice(values, (_SAMPLES, len(values))).mean(axis=-1))


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
