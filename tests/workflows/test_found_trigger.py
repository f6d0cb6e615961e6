# SPDX-License-Identifier: Apache-2.0
"""The trigger that a scanning process reports is not taken at its word."""

from __future__ import annotations

import pytest

from d2defense.detection import load_bank
from d2defense.registry import TRIGGER_REGISTRY
from d2defense.report.results import TRIGGER_BANK_FILE, TRIGGER_FILE
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
