# SPDX-License-Identifier: Apache-2.0
"""The trigger that a scanning process reports is not taken at its word."""

from __future__ import annotations

import json

import pytest

from d2defense.detection import load_bank
from d2defense.registry import TRIGGER_REGISTRY
from d2defense.report.results import (
    TRIGGER_BANK_FILE,
    TRIGGER_FILE,
    empty_result,
    validate_result,
)
from d2defense.report.scan_page import write_scan_report
from d2defense.report.table import format_table
from d2defense.triggers.pictures import random_picture
from d2defense.workflows.scan.found_trigger import write_found_trigger

START = TRIGGER_REGISTRY.get("overlay")("found", opacity=0.1, content=random_picture(4, 0))


@pytest.fixture
def entry():
    return START.to_entry(TRIGGER_FILE)[0]


def write(folder, entry, figures=None):
    content = START.to_entry(TRIGGER_FILE)[1]
    (folder / TRIGGER_FILE).write_bytes(content)
    figures = {TRIGGER_FILE: content} if figures is None else figures
    write_found_trigger(folder, {"name": "a", "search": {"trigger": entry}}, figures)
    return folder / TRIGGER_BANK_FILE


def test_it_is_a_bank_of_one(tmp_path, entry):
    (trigger,) = load_bank(write(tmp_path, entry))
    assert trigger.fingerprint == START.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"file": "/etc/passwd"},
        {"file": "../trigger.png"},
        {"file": 3},
        {"family": "nonsense"},
        {"name": ["a"]},
        {"nonsense": 1},
        {"grid": {"opacity": [0.1] * 5000}},
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_left_out(tmp_path, entry, change, caplog):
    assert not write(tmp_path, entry | change).exists()
    assert "a: the found trigger is left out" in caplog.text


def test_without_its_picture_there_is_no_bank(tmp_path, entry):
    assert not write(tmp_path, entry, figures={}).exists()
    assert not write(tmp_path, None).exists()


def test_a_found_trigger_without_a_measurement_breaks_no_page(tmp_path):
    """Such a result fits the schema, and a process that an attacker took over may send it."""
    search = dict.fromkeys(("obstacle", "trigger"), None) | {
        "level": "fast", "references": [], "left_out": [], "num_images": 0, "score": 1.0,
        "score_interval": [1.0, 1.0], "threshold": 0.5, "p_value": 0.0, "operating_point": 0.5,
        "has_found": True, "arms": [], "seconds": 1.0,
    }  # fmt: skip
    result = empty_result("a") | {"verdict": "backdoored", "score": 1.0, "threshold": 0.5}
    result |= {"score_interval": [1.0, 1.0], "search": search, "reason": "it says so"}
    validate_result(result)
    assert "BACKDOORED" in format_table([result])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text(json.dumps(result))
    write_scan_report(tmp_path, {"a"})
    page = (tmp_path / "report.html").read_text()
    assert "fast: could not be done: nothing was measured" in page
