# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2defense.benchmark.results import FAILED, ResultRow
from d2defense.benchmark.tables import area_under_curve, share_found, summarise


def by_hand(positives, negatives) -> float:
    """Every pair: 1 if the backdoored one is above, a half if they are equal."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    return sum(pairs) / len(pairs)


def find(summaries, method, metric, by="", group="", truth=""):
    (found,) = [
        each
        for each in summaries
        if (each.method, each.metric, each.by, each.group, each.truth)
        == (method, metric, by, group, truth)
    ]
    return found


def test_the_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 5, 13) * 1.0, rng.integers(0, 4, 9) * 1.0
    assert area_under_curve(positives, negatives) == pytest.approx(by_hand(positives, negatives))
    assert area_under_curve(np.array([2.0]), np.array([1.0, 1.0])) == 1.0
    assert area_under_curve(np.array([1.0]), np.array([2.0])) == 0.0


@pytest.mark.parametrize(
    ("rate", "count", "expected"),
    [
        # Of 10 clean ones at 0..9 none may be above: 12 and 10 are found.
        (0.05, 10, 0.5),
        # Of 10 one may be above, so the threshold is 8.
        (0.1, 10, 0.75),
        (1.0, 10, 1.0),
    ],
)
def test_found_at_a_rate_of_false_alarms(rate, count, expected):
    negatives = np.arange(count, dtype=float)
    assert share_found(np.array([12.0, 10.0, 8.5, 1.0]), negatives, rate) == expected


def test_equal_scores_are_not_found():
    assert share_found(np.array([3.0, 3.0]), np.array([3.0, 3.0]), 0.01) == 0.0


def test_over_all_and_by_group(made_up_rows):
    summaries = summarise(made_up_rows)
    scores = {
        name: [
            row.value
            for row in made_up_rows
            if row.method == "good" and row.metric == "score" and row.truth == name
        ]
        for name in ("clean", "backdoored")
    }
    over_all = find(summaries, "good", "AUC")
    assert over_all.value == pytest.approx(by_hand(scores["backdoored"], scores["clean"]))
    assert over_all.low <= over_all.value <= over_all.high
    assert (over_all.positives, over_all.negatives) == (24, 20)
    # Of an effect all clean detectors count, of a kind only its own.
    assert find(summaries, "good", "AUC", "effect", "ghost").negatives == 20
    of_kind = find(summaries, "good", "AUC", "kind", "c4")
    assert (of_kind.positives, of_kind.negatives) == (12, 10)
    assert find(summaries, "poor", "AUC").value < over_all.value


def test_other_metrics_are_means_by_truth_without_new_code(made_up_rows):
    rows = [replace(row, metric="sharpness", value=0.5) for row in made_up_rows[:4]]
    summary = find(summarise(made_up_rows + rows), "good", "sharpness", truth="clean")
    assert summary.value == 0.5
    alarms = [
        row.value
        for row in made_up_rows
        if row.method == "poor" and row.metric == "alarm" and row.truth == "clean"
    ]
    found = find(summarise(made_up_rows), "poor", "alarm", truth="clean")
    assert found.value == pytest.approx(np.mean(alarms))


def test_attacks_that_did_not_take_are_neither_found_nor_missed(made_up_rows):
    weak = [replace(row, took=False) if row.detector == "d30" else row for row in made_up_rows]
    assert find(summarise(weak), "good", "AUC").positives == 23
    assert find(summarise(weak), "good", "AUC").negatives == 20


def test_a_detector_that_a_method_failed_on_counts_as_missed(made_up_rows):
    last = "d43"
    kept = [row for row in made_up_rows if row.detector != last or row.method != "good"]
    failed = ResultRow(
        "detect", "good", FAILED, None, last, truth="backdoored", took=True, reason="no time"
    )
    summary = find(summarise([*kept, failed]), "good", "AUC")
    assert summary.positives == 24
    without = find(summarise(kept), "good", "AUC")
    assert summary.value < without.value
