# SPDX-License-Identifier: Apache-2.0
"""Result files: what the schema admits, and what a broken one becomes."""

from __future__ import annotations

import json
from importlib import resources

import jsonschema
import pytest

from d2defense import files
from d2defense.report import results


def test_the_shipped_schema_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(results.result_schema())
    assert resources.files("d2defense").joinpath("assets/report/result.schema.json").is_file()


def test_complete_and_error_results_are_valid(make_result):
    results.validate_result(make_result())
    results.validate_result(results.error_result("x", "no such\nfile", "a/b"))


@pytest.mark.parametrize(
    "absent",
    ["architecture", "dataset", "score_interval", "p_value", "clean", "histogram", "timing"],
)
def test_no_data_is_valid(make_result, absent):
    results.validate_result(make_result(**{absent: None}))


def test_further_statistics_are_valid(make_result):
    result = make_result()
    result["triggers"][0]["statistics"]["true_class_probability"] = {
        "clean": 0.9,
        "triggered": None,
        "change": None,
        "interval": None,
    }
    results.validate_result(result)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"schema_version": 1}, "schema_version"),
        ({"name": ""}, "name"),
        ({"verdict": "fine"}, "verdict"),
        ({"p_value": 1.5}, "p_value"),
        ({"score": None}, "score"),
        ({"score": "0.6"}, "score"),
        ({"score": float("nan")}, "JSON"),
        ({"score_interval": [0.1]}, "score_interval"),
        ({"verdict": "error"}, "error"),
        ({"error": "a reason, but a verdict"}, "error"),
        ({"triggers": [{"name": "white"}]}, "triggers"),
        ({"histogram": {"edges": [0, 1]}}, "histogram"),
        ({"dominant_modules": [3]}, "dominant_modules"),
    ],
)
def test_bad_results_are_refused_with_the_place(make_result, changes, place):
    with pytest.raises(ValueError, match=place) as caught:
        results.validate_result(make_result(**changes))
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_refused(make_result):
    result = make_result()
    del result["checkpoint"]["sha256"]
    with pytest.raises(ValueError, match="sha256"):
        results.validate_result(result)


def test_results_are_loaded_by_folder_name(tmp_path, make_result):
    for name in ("b", "a"):
        files.write_json(tmp_path / name / "result.json", make_result(name))
    (tmp_path / "empty").mkdir()
    assert [result["name"] for result in results.load_results(tmp_path)] == ["a", "b"]
    assert results.load_results(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"score": NaN}',
        b"[" * 100_000,
        json.dumps({"schema_version": 99}).encode(),
    ],
)
def test_a_broken_file_becomes_an_error_and_hides_no_other(tmp_path, make_result, content):
    files.write_bytes(tmp_path / "broken" / "result.json", content)
    files.write_json(tmp_path / "good" / "result.json", make_result("good"))
    broken, good = results.load_results(tmp_path)
    assert (broken["name"], broken["verdict"]) == ("broken", "error")
    assert str(tmp_path / "broken") in broken["error"]
    results.validate_result(broken)
    assert good["verdict"] == "backdoored"


def test_a_result_that_cannot_be_read_becomes_an_error(tmp_path):
    (tmp_path / "x" / "result.json").mkdir(parents=True)
    (broken,) = results.load_results(tmp_path)
    assert "cannot be read" in broken["error"]


def test_severity_comes_first_then_score(make_result):
    made = [
        make_result("clean", verdict="clean", score=0.1),
        results.error_result("error", "reason"),
        make_result("low", score=0.5),
        make_result("high", score=0.7),
        make_result("uncertain", verdict="uncertain", score=0.3),
    ]
    ordered = [result["name"] for result in results.by_severity(made)]
    assert ordered == ["high", "low", "uncertain", "error", "clean"]


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 3),
        (["clean", "clean"], 0),
        (["clean", "backdoored"], 1),
        (["clean", "uncertain"], 1),
        (["clean", "error"], 2),
        (["backdoored", "error"], 2),
    ],
)
def test_exit_code(verdicts, code):
    assert results.exit_code([{"verdict": verdict} for verdict in verdicts]) == code


def test_triggers_are_ranked_and_the_worst_is_looked_up(make_result):
    result = make_result()
    result["triggers"].append({"name": "unscored", "score": None, "statistics": {}})
    names = [trigger["name"] for trigger in results.trigger_results(result)]
    assert names == ["white", "grey", "unscored"]
    assert results.statistic_of_worst_trigger(result, "tau")["triggered"] == 0.45
    assert results.statistic_of_worst_trigger(make_result(worst_trigger=None), "tau") == {}
