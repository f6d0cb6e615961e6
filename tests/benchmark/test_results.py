# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from d2defense.benchmark.zoo.index import FACTS
from d2defense.study.results import FAILED, ResultRow, ResultsError, ResultStore


def row(**changes) -> ResultRow:
    made = ResultRow("detect", "bank", "score", 0.25, "clean_0", sha256="ab", images=10)
    return replace(made, **changes)


def test_what_is_written_is_read(tmp_path):
    store = ResultStore(tmp_path)
    rows = [
        row(low=0.1, high=0.4, settings={"verdict": "clean"}, took=None),
        row(metric="alarm", value=0.0),
        row(task="repair", method="nad", metric="asr", value=math.nan),
    ]
    store.put(rows)
    read = store.read()
    assert read[:2] == rows[:2]
    # What is not finite is no data, and the file is JSON all the same.
    assert read[2].value is None
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["bank.jsonl", "nad.jsonl"]


def test_a_cell_takes_the_place_of_its_earlier_rows_alone(tmp_path):
    store = ResultStore(tmp_path)
    store.put([row(), row(metric="alarm", value=1.0), row(detector="clean_1", value=0.5)])
    store.put([row(value=0.75)])
    assert [(each.detector, each.metric, each.value) for each in store.read()] == [
        ("clean_1", "score", 0.5),
        ("clean_0", "score", 0.75),
    ]


def test_other_images_seed_budget_or_weights_are_another_cell(tmp_path):
    store = ResultStore(tmp_path)
    others = [row(), row(images=20), row(seed=1), row(budget=60.0), row(sha256="cd")]
    for each in others:
        store.put([each])
    assert len(store.read()) == len(store.cells()) == 5


def test_a_failure_is_no_measurement(tmp_path):
    store = ResultStore(tmp_path)
    store.put([row(metric=FAILED, value=None, reason="out of time")])
    assert store.cells() == set()
    assert store.read()[0].reason == "out of time"


def test_a_broken_line_is_named(tmp_path):
    store = ResultStore(tmp_path)
    store.put([row()])
    path = tmp_path / "detect" / "bank.jsonl"
    path.write_text(path.read_text() + '{"task": "detect"}\n')
    with pytest.raises(ResultsError, match=r"bank\.jsonl, line 2"):
        store.read()


def test_keys_of_a_later_version_are_left_out(tmp_path):
    (tmp_path / "detect").mkdir()
    content = row().as_dict() | {"colour": "red"}
    (tmp_path / "detect" / "bank.jsonl").write_text(json.dumps(content) + "\n")
    assert ResultStore(tmp_path).read() == [row()]


def test_labels_tell_what_a_sequestered_detector_is():
    hidden = row(detector="sequestered_0", truth=None, kind="c4")
    known = {"truth": "backdoored", "detector": "c4", "effect": "ghost", "seed": 3}
    labels = {"sequestered_0": dict.fromkeys(FACTS) | known}
    told = hidden.labelled(labels)
    assert (told.truth, told.effect, told.kind) == ("backdoored", "ghost", "c4")
    assert (told.detector, told.seed) == ("sequestered_0", 0)
    assert row().labelled(labels) == row()
