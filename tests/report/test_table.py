# SPDX-License-Identifier: Apache-2.0
"""The terminal's table and the summaries for machines."""

from __future__ import annotations

import csv
import json

from d2defense.report import table
from d2defense.report.results import error_result


def test_what_needs_attention_comes_first(make_result):
    shown = table.format_table(
        [
            make_result("good", verdict="clean", score=0.05),
            error_result("gone", "models/gone: no such file"),
            make_result("bad"),
        ]
    )
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["BACKDOORED", "error", "clean"]
    assert "0.61 [0.55, 0.67]" in lines[2]
    assert "0.95 → 0.45" in lines[2]
    assert "gone: models/gone: no such file" in lines
    assert lines[-1] == "1 backdoored, 1 error, 1 clean"


def test_of_a_trigger_that_was_searched_for_stands_what_it_does(make_result):
    arm = {"effect": "ghost", "target_class": "stop", "success": 0.974, "references": [0.0, 0.06]}
    result = make_result("ghost", search={"has_found": True, "arms": [arm]})
    (line,) = (each for each in table.format_table([result]).splitlines() if "ghost" in each)
    assert "succeeds 0.97 (references 0.03)" in line
    assert "0.45" not in line


def test_what_holds_for_several_checkpoints_is_said_once(make_result):
    shown = table.format_table(
        [
            make_result("a", warnings=["no photo", "odd"]),
            make_result("b", warnings=["no photo"]),
            error_result("c", "no data"),
            error_result("d", "no data"),
        ]
    )
    lines = shown.splitlines()
    for line in ("2 checkpoints: no data", "2 checkpoints: warning: no photo", "a: warning: odd"):
        assert lines.count(line) == 1
    assert shown.count("no photo") == shown.count("no data") == 1


def test_what_a_detector_is_known_to_be_stands_beside_its_verdict(make_result):
    results = [make_result("a", verdict="clean", score=0.05), make_result("b")]
    lines = table.format_table(results, truth={"a": "ghost by patch"}).splitlines()
    assert lines[0].endswith("in truth")
    assert lines[2].startswith("BACKDOORED")
    assert lines[2].endswith("\N{EN DASH}")
    assert lines[3].startswith("clean")
    assert lines[3].endswith("ghost by patch")


def test_nothing_scanned_is_said():
    assert table.format_table([]) == "nothing scanned"


def test_names_cannot_drive_the_terminal_or_pass_for_numbers(make_result):
    shown = table.format_table(
        [make_result("1e5"), make_result("\x1b[2J\n"), error_result("x" * 99, "a\x07b")]
    )
    assert all(line.isprintable() for line in shown.splitlines())
    assert " 1e5 " in shown
    assert r"\x1b[2J\n" in shown
    assert "x" * 41 not in shown


def test_csv_holds_every_result(tmp_path, make_result):
    path = table.write_summary_csv(
        tmp_path / "summary.csv",
        [make_result("good", verdict="clean", score=0.05), make_result("a,\"b'\n")],
    )
    with path.open(newline="", encoding="utf-8") as stream:
        bad, good = csv.DictReader(stream)
    assert tuple(bad) == table.SUMMARY_FIELDS
    assert bad["name"] == "a,\"b'\\n"
    assert bad["dominant_modules"] == "box_head box_predictor"
    assert float(bad["score_low"]) == 0.55
    assert float(bad["objects_found_triggered"]) == 0.45
    assert good["verdict"] == "clean"
    assert good["error"] == ""


def test_csv_starts_no_formula(tmp_path):
    path = table.write_summary_csv(
        tmp_path / "summary.csv", [error_result('=HYPERLINK("x")', "@reason", "-path")]
    )
    with path.open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["name"][0], row["path"][0], row["error"][0]) == ("'", "'", "'")


def test_json_holds_counts_and_exit_code(tmp_path, make_result):
    path = table.write_summary_json(
        tmp_path / "summary.json", [error_result("\ud800", "reason"), make_result()]
    )
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert summary["counts"] == {"backdoored": 1, "uncertain": 0, "error": 1, "clean": 0}
    assert summary["exit_code"] == 2
    assert [row["name"] for row in summary["results"]] == ["backdoored_0", "\ud800"]
    assert summary["results"][0]["dominant_modules"] == ["box_head", "box_predictor"]


HOSTILE = "\x1b]0;title\x07\x1b[31mred\r\nclean\u202egnp.exe\u2066\u200b\x9b2J<script>&\ud800"


def test_no_string_from_outside_acts_on_the_terminal(make_result):
    result = make_result(
        HOSTILE,
        worst_trigger=HOSTILE,
        dominant_modules=[HOSTILE],
        warnings=[HOSTILE],
    )
    shown = table.format_table([result, error_result(HOSTILE, HOSTILE, HOSTILE)])
    assert all(line.isprintable() for line in shown.split("\n"))
    shown.encode("utf-8")
    assert shown.splitlines()[-1] == "1 backdoored, 1 error"
    # Two rows, their heading, a warning and an error: no string made a line of its own.
    assert len([line for line in shown.splitlines() if line]) == 7


def test_warnings_are_shown_and_summarized(tmp_path, make_result):
    result = make_result("odd", warnings=["2 tensors hold NaN", "another"])
    assert "odd: warning: 2 tensors hold NaN" in table.format_table([result]).splitlines()
    path = table.write_summary_csv(tmp_path / "summary.csv", [result])
    with path.open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert row["warnings"] == "2 tensors hold NaN | another"
    assert table.summarize([result])["results"][0]["warnings"] == result["warnings"]
