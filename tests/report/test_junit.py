# SPDX-License-Identifier: Apache-2.0
"""JUnit XML as a build server reads it."""

from __future__ import annotations

from xml.etree import ElementTree

from d2defense.report.junit import write_junit
from d2defense.report.results import error_result

HOSTILE = "a\x1b[2J\n\x00\ufffe\ud800\udcff]]><b>&\"'\u202e"


def test_a_test_a_checkpoint(make_result, tmp_path):
    path = write_junit(
        tmp_path / "junit.xml",
        [
            make_result("good", verdict="clean", score=0.05, warnings=["no photo"]),
            make_result("odd", verdict="uncertain", reason="too few images"),
            error_result("gone", "models/gone: no such file"),
            make_result("bad", reason="it reacts"),
        ],
    )
    suites = ElementTree.parse(path).getroot()
    (suite,) = suites
    for element in (suites, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors")) == (
            "4", "2", "1",
        )  # fmt: skip
    # What went wrong, by the test's name; a passing test has neither element.
    told = {
        case.get("name"): [child.tag for child in case if child.tag != "system-out"]
        for case in suite
    }
    assert told == {"bad": ["failure"], "odd": ["failure"], "gone": ["error"], "good": []}
    cases = {case.get("name"): case for case in suite}
    assert "too few images" in cases["odd"].find("failure").get("message")
    assert cases["gone"].find("error").get("message") == "models/gone: no such file"
    assert cases["good"].findtext("system-out") == "no photo"
    assert float(cases["bad"].get("time")) == 3.2
    assert float(suite.get("time")) == 9.6


def test_names_from_outside_do_not_break_the_document(make_result, tmp_path):
    path = write_junit(
        tmp_path / "junit.xml",
        [error_result(HOSTILE, HOSTILE), make_result(HOSTILE, reason=HOSTILE, warnings=[HOSTILE])],
    )
    (suite,) = ElementTree.parse(path).getroot()
    assert [case.tag for case in suite] == ["testcase", "testcase"]
    assert {case.get("name") for case in suite} == {
        "a\\x1b[2J\\n\\x00\\ufffe\\ud800\\udcff]]><b>&\"'\\u202e"
    }


def test_nothing_scanned_is_an_empty_suite(tmp_path):
    (suite,) = ElementTree.parse(write_junit(tmp_path / "junit.xml", [])).getroot()
    assert suite.get("tests") == "0"
    assert len(suite) == 0
