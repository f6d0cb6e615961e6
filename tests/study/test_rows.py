# SPDX-License-Identifier: Apache-2.0
"""The tidy rows of a study: from the results of steps, and from files without them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

from d2defense.study.profiles import load_profile
from d2defense.study.reproduction import report_of
from d2defense.study.results import ResultRow
from d2defense.study.rows import StudyRows
from d2defense.study.steps import Step, StepResults

FACTS = {"detector": "d", "kind": "fpn", "attack": "oda", "truth": "backdoored", "method": "nad"}
STEP = Step("evaluate/d/nad", "evaluate", {"trigger": []}, facts=FACTS)


def evaluation(found: float, ap: float) -> dict[str, Any]:
    sides = {"AP": ap, "objects_found": found, "statistics": {"gap": found / 2}}
    return {"clean": sides, "triggered": sides, "asr": 1 - found, "attack_took": False}


def test_a_row_a_number_with_the_facts_of_its_step(tmp_path: Path) -> None:
    StepResults(tmp_path).put(STEP, evaluation(0.5, 80.0), 3.0)
    rows = StudyRows.read(tmp_path, [STEP])
    assert rows.value(STEP, "gap:triggered") == 0.25
    row = rows.row(STEP, "AP:clean")
    assert (row.value, row.method, row.kind, row.seconds) == (80.0, "nad", "fpn", 3.0)
    # Whether an attack took is no question of a repaired detector.
    assert row.took is None
    assert rows.setting(STEP, "arguments") == {"trigger": []}


def test_rows_stay_where_the_results_are_gone_and_give_way_to_new_ones(tmp_path: Path) -> None:
    results = StepResults(tmp_path)
    results.put(STEP, evaluation(0.5, 80.0), 3.0)
    StudyRows.read(tmp_path, [STEP])
    shutil.rmtree(tmp_path / "steps")
    assert StudyRows.read(tmp_path, [STEP]).value(STEP, "AP:clean") == 80.0
    results.put(STEP, evaluation(0.5, 70.0), 3.0)
    assert StudyRows.read(tmp_path, [STEP]).value(STEP, "AP:clean") == 70.0


def test_rows_of_a_stale_result_do_not_serve(tmp_path: Path) -> None:
    StepResults(tmp_path).put(STEP, evaluation(0.5, 80.0), 3.0)
    StudyRows.read(tmp_path, [STEP])
    other = Step(STEP.name, "evaluate", {"trigger": ["ATTACK.SEED", 1]}, facts=FACTS)
    assert not StudyRows.read(tmp_path, [other]).has(other)
    assert StudyRows.read(tmp_path, [STEP]).has(STEP)


def test_a_scan_s_row_is_the_largest_over_its_triggers(tmp_path: Path) -> None:
    moved = [{"triggered": 0.25, "change": 0.125}, {"triggered": 0.5, "change": -0.5}]
    nothing = {"triggered": None, "change": None}
    triggers = [{"statistics": {"gap": each, "tau": nothing}} for each in moved]
    step = Step("scan/d", "scan", {})
    scanned = {"score": 0.5, "verdict": "backdoored", "triggers": triggers}
    StepResults(tmp_path).put(step, scanned, 1.0)
    rows = StudyRows.read(tmp_path, [step])
    found = {name: rows.value(step, f"gap:{name}") for name in ("triggered", "rise", "fall")}
    assert found == {"triggered": 0.5, "rise": 0.125, "fall": 0.5}
    assert rows.value(step, "tau:rise") == 0.0
    assert rows.value(step, "alarm") == 1.0


def test_the_published_tables_are_what_the_published_rows_give(tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "docs" / "study"
    shutil.copytree(published / "rows", tmp_path / "rows")
    report_of(
        load_profile("tiny"),
        ["table1", "table2", "table3", "modules", "unseen"],
        tmp_path,
        "made again",
    )
    tables = sorted((tmp_path / "tables").glob("*.csv"))
    assert len(tables) == 7
    for path in tables:
        again, known = (
            list(csv.reader(each.read_text().splitlines()))
            for each in (path, published / "tables" / path.name)
        )
        assert len(again) == len(known)
        for one, other in zip(again, known, strict=True):
            assert all(map(is_same, one, other)), (path.name, one, other)


def is_same(one: str, other: str) -> bool:
    """Whether two cells hold the same word or number."""
    try:
        return float(one) == pytest.approx(float(other), abs=1e-9)
    except ValueError:
        return one == other


class TestComparison:
    CLEAN, BEFORE, AFTER = (Step(name, "evaluate", {}) for name in ("clean", "before", "after"))

    def compared(self, **found: float) -> StudyRows:
        rows = StudyRows(
            [
                ResultRow("evaluate", "", metric, value, name, conditions={"step": name})
                for name, share in found.items()
                for metric, value in (("objects_found:triggered", share), ("AP:clean", 90 * share))
            ],
            Path(),
        )
        rows.compare(self.CLEAN, self.BEFORE, self.AFTER)
        return rows

    @pytest.mark.parametrize(
        ("before", "after", "clean", "share"),
        [(0.2, 0.2, 0.8, 0.0), (0.2, 0.8, 0.8, 1.0), (0.2, 0.5, 0.8, 0.5), (0.2, 0.9, 0.8, 7 / 6)],
    )
    def test_recovered_is_the_share_of_what_the_attack_took(self, before, after, clean, share):
        rows = self.compared(before=before, after=after, clean=clean)
        assert rows.value(self.AFTER, "recovered") == pytest.approx(share)
        assert rows.value(self.AFTER, "ap_drop") == pytest.approx(90 * (before - after))

    def test_it_is_unknown_where_something_is_missing_or_nothing_was_taken(self) -> None:
        assert self.compared(before=0.5, clean=0.8).value(self.AFTER, "recovered") is None
        rows = self.compared(before=0.8, after=0.8, clean=0.8)
        assert rows.value(self.AFTER, "recovered") is None
