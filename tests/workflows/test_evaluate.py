# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from d2defense.evaluation import AP_METRICS
from d2defense.workflows.evaluation import format_evaluation


def evaluation(name: str, asr: float | None, gap: float | None = 0.25) -> dict:
    condition = {
        **dict.fromkeys(AP_METRICS, 50.0),
        "objects_found": 0.9,
        "statistics": {"tau": 0.4125, "gap": gap, "tau_all": 0.7},
    }
    return {
        "name": name, "error": None, "clean": condition, "triggered": condition, "asr": asr,
    }  # fmt: skip


def columns(table: str) -> list[list[str]]:
    """Cells of the table's lines, by the rule below its headers."""
    lines = table.splitlines()
    widths = [len(rule) for rule in lines[1].split("  ")]
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    return [
        [line[start : start + width].strip() for start, width in zip(starts, widths, strict=True)]
        for line in lines
    ]


@pytest.mark.parametrize(
    ("asr", "cells", "explained"),
    [
        (0.72, ["0.720", "succeeds"], False),
        (0.5, ["0.500", "succeeds"], False),
        (0.12, ["0.120", "attack fails"], True),
        (None, ["-", "-"], False),
    ],
)
def test_the_table_says_whether_the_attack_works(asr, cells, explained):
    table = format_evaluation([evaluation("detector", asr)])
    headers, _, clean, triggered, *_ = columns(table)
    assert headers[:2] + headers[8:] == [
        "checkpoint", "images", "objects found", "tau", "gap", "ASR", "attack",
    ]  # fmt: skip
    assert clean[8:] == ["0.900", "0.412", "0.250", "", ""]
    assert triggered[:2] == ["detector", "triggered"]
    assert triggered[11:] == cells
    assert ("attack fails: the ASR is under 0.5" in table) == explained


def test_missing_numbers_and_errors_are_shown():
    failed = {"name": "broken", "error": "broken: no weights"}
    table = format_evaluation([failed, evaluation("detector", 0.9, gap=None)])
    assert columns(table)[2][10] == "-"
    assert table.splitlines()[-1] == "error: broken: no weights"
