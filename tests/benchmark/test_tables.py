# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2defense.benchmark.tables import summarise
from d2defense.study.results import FAILED, ResultRow


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


def test_an_area_of_one_has_an_interval_all_the_same(made_up_rows):
    rows = [replace(r, value=float(r.truth == "backdoored")) for r in made_up_rows]
    perfect = find(summarise(rows), "good", "AUC")
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.8 < perfect.low < 0.97


def test_a_share_of_none_has_an_interval_all_the_same(made_up_rows):
    rows = [replace(r, value=0.0) if r.metric == "alarm" else r for r in made_up_rows]
    alarm = find(summarise(rows), "good", "alarm", truth="clean")
    assert (alarm.value, alarm.low) == (0.0, 0.0)
    # Wilson's interval for 0 of 20: z^2 / (20 + z^2).
    assert alarm.high == pytest.approx(1.96**2 / (20 + 1.96**2), abs=1e-4)


class TestRowsOfOneDetector:
    @pytest.fixture
    def rows(self, made_up_rows):
        """Each measured with 10 images, and worse with 5."""
        few = [replace(r, images=5, value=r.value / 2) for r in made_up_rows if r.metric == "score"]
        return [*few, *made_up_rows]

    def test_all_others_count_those_with_the_most_images(self, rows, made_up_rows):
        both, alone = summarise(rows), summarise(made_up_rows)
        for by, group in (("", ""), ("effect", "ghost"), ("kind", "c4")):
            for metric in ("AUC", "found at 5 %"):
                expected = find(alone, "good", metric, by, group)
                assert find(both, "good", metric, by, group) == expected

    def test_the_numbers_of_images_are_groups(self, rows, made_up_rows):
        rows = [
            replace(r, value=-r.value) if r.images == 5 and r.method == "good" else r for r in rows
        ]
        summaries = summarise(rows)
        usual = find(summaries, "good", "AUC").value
        assert find(summaries, "good", "AUC", "images", "10 images").value == usual
        assert find(summaries, "good", "AUC", "images", "5 images").value == pytest.approx(
            1 - usual
        )

    def test_seeds_are_averaged_and_make_no_more_detectors(self, made_up_rows):
        again = [replace(r, seed=1, value=r.value + 2) for r in made_up_rows]
        both = find(summarise([*made_up_rows, *again]), "good", "AUC")
        assert both == find(summarise(made_up_rows), "good", "AUC")

    def test_parts_of_a_score_are_groups_and_count_nowhere_else(self, made_up_rows):
        parts = [
            replace(r, metric=f"score:{name}", value=sign * r.value)
            for r in made_up_rows
            if r.metric == "score"
            for name, sign in (("search", 1), ("bank", -1))
        ]
        summaries = summarise([*made_up_rows, *parts])
        whole = find(summaries, "good", "AUC")
        assert whole == find(summarise(made_up_rows), "good", "AUC")
        assert find(summaries, "good", "AUC", "part", "search").value == whole.value
        bank = find(summaries, "good", "AUC", "part", "bank")
        assert bank.value == pytest.approx(1 - whole.value)

    def test_own_settings_of_a_method_are_another_line(self, made_up_rows):
        tuned = [replace(r, conditions={"opts": ["A.B", "2"]}) for r in made_up_rows]
        summaries = summarise([*made_up_rows, *tuned])
        assert find(summaries, "good A.B 2", "AUC").value == find(summaries, "good", "AUC").value


def test_weak_attacks_are_groups_of_their_own(made_up_rows):
    def weaken(row):
        number = int(row.detector[1:])
        if number < 20:
            return row
        took = number >= 30
        # Two of those that did not take are as successful on clean detectors.
        asr, control = (0.9, 0.0) if took else (0.3, 0.25 if number < 22 else 0.05)
        return replace(row, took=took, asr=asr, control_asr=control)

    summaries = summarise([weaken(row) for row in made_up_rows])
    assert find(summaries, "good", "AUC").positives == 14

    def positives(group):
        return find(summaries, "good", "AUC", "strength", group).positives

    assert positives("ASR 0.8 and more") == 14
    assert positives("did not take: weak, ASR 0.2 and more") == 8
    assert positives("did not take: no effect") == 2
    weak = find(
        summaries, "good", "alarm", "strength", "did not take: weak, ASR 0.2 and more", "backdoored"
    )
    assert weak.positives == 8


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
        "detect", "good", FAILED, None, last, truth="backdoored", took=True, images=10
    )
    summary = find(summarise([*kept, failed]), "good", "AUC")
    assert summary.positives == 24
    without = find(summarise(kept), "good", "AUC")
    assert summary.value < without.value
