# SPDX-License-Identifier: Apache-2.0
"""What the process that screens sends is not taken at its word."""

from __future__ import annotations

import io
import json

import pytest

from d2defense.report.screening import write_screening_page
from d2defense.workflows.screening.driver import SHOWN, _RecordInbox, checked

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


def record(**changes):
    good = {
        "image": "a.png", "frame": None, "verdict": "suspicious", "score": 2.0, "threshold": 1.0,
        "p_value": 0.01, "passes": 1.2, "seconds": 0.1,
        "places": [{"box": [1, 2, 3, 4], "score": 2.0, "suspicious": True}],
        "detections": [{"box": [1, 2, 3, 4], "class": 3, "score": 0.9}],
    }  # fmt: skip
    return good | changes


def test_a_good_record_is_taken_and_what_is_beside_it_is_not():
    assert checked(record(extra="<script>")) == record()
    broken = {"image": "b.png", "frame": 3, "verdict": "error", "reason": "empty file"}
    assert checked(broken | {"score": 1}) == broken


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "clean"}, {"score": "2"}, {"score": float("nan")}, {"image": 5},
        {"places": [{"box": [1, 2, 3], "score": 1, "suspicious": True}]}, {"places": 7},
        {"detections": [{"box": [1, 2, 3, 4], "class": 1}]}, {"passes": True},
        {"score": 10**400}, {"frame": 10**400},
    ],
)  # fmt: skip
def test_anything_else_is_no_record(changes):
    assert checked(record(**changes)) is None
    assert checked(None) is None


def test_only_the_most_suspicious_pictures_are_kept():
    lines, table = io.StringIO(), io.StringIO()
    inbox = _RecordInbox(lines, table)
    for number in range(3 * SHOWN):
        content = record(image=f"{number}.png", score=float(number % 150))
        inbox({"record": content}, PNG if number % 2 else b"<html>")
    shown = inbox.shown()
    assert len(shown) == SHOWN
    assert [each["score"] for each, _ in shown[:2]] == [149.0, 149.0]
    assert {picture for _, picture in shown} == {PNG, b""}
    assert len(lines.getvalue().splitlines()) == 3 * SHOWN
    assert json.loads(lines.getvalue().splitlines()[-1])["image"] == "299.png"
    assert inbox.summary.exit_code == 1


def test_formulas_do_not_reach_a_table():
    table = io.StringIO()
    _RecordInbox(io.StringIO(), table)({"record": record(image="=cmd()")}, b"")
    assert "'=cmd()" in table.getvalue()


def test_an_invalid_record_is_an_error():
    inbox = _RecordInbox(io.StringIO(), io.StringIO())
    inbox({"record": record(verdict="clean")}, b"")
    assert inbox.summary.exit_code == 2
    assert "invalid record" in inbox.summary.error


@pytest.mark.parametrize(
    "changes", [{"threshold": float("nan")}, {"left_out": 5}, {"seconds": 10**400}, {"method": 1}]
)
def test_an_invalid_fit_is_an_error(changes):
    fitted = {
        "method": "strip", "false_alarm_rate": 0.1, "clean_images": 20, "threshold": 1.0,
        "seconds": 2.0, "left_out": ["a.png: empty file"],
    }  # fmt: skip
    good, bad = (_RecordInbox(io.StringIO(), io.StringIO()) for _ in range(2))
    good({"fitted": fitted}, b"")
    assert good.summary.error == ""
    bad({"fitted": fitted | changes}, b"")
    assert bad.summary.exit_code == 2
    bad({"fitted": None}, b"")
    assert bad.summary.fitted == {}


def test_the_page_shows_names_as_text(tmp_path):
    summary = {
        "images": 1, "suspicious": 1, "unsuspicious": 0, "unreadable": 0, "error": None,
        "exit_code": 1,
    }  # fmt: skip
    page = write_screening_page(
        tmp_path / "report.html", summary, [(record(image="<img src=x>"), PNG)]
    ).read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page
    assert "data:image/png;base64," in page
