# SPDX-License-Identifier: Apache-2.0
"""A scan as JUnit XML, in which build servers take the outcome of tests: a test a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from d2defense import files, text
from d2defense.report.findings import finding
from d2defense.report.results import Result, by_severity, count_verdicts

_SUITE = "d2defense scan"


def junit_document(results: Sequence[Result]) -> str:
    """The XML document of a scan.

    A clean checkpoint is a test that passes, a backdoored or uncertain one a test that fails, one
    that could not be scanned a test with an error.
    """
    counts = count_verdicts(results)
    totals = {
        "tests": str(len(results)),
        "failures": str(counts["backdoored"] + counts["uncertain"]),
        "errors": str(counts["error"]),
        "time": f"{sum(map(_seconds, results)):.3f}",
    }
    suites = ElementTree.Element("testsuites", {"name": _SUITE, **totals})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _SUITE, "skipped": "0", **totals})
    for result in by_severity(results):
        found = finding(result)
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"name": found.name, "classname": "d2defense.scan", "time": f"{_seconds(result):.3f}"},
        )
        if found.rule is not None:
            kind = "error" if found.rule.verdict == "error" else "failure"
            told = ElementTree.SubElement(
                case, kind, {"type": found.rule.verdict, "message": found.reason}
            )
            told.text = f"{found.reason}\n{found.rule.help}"
        if result["warnings"]:
            lines = "\n".join(text.printable(line) for line in result["warnings"])
            ElementTree.SubElement(case, "system-out").text = lines
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def write_junit(path: str | os.PathLike[str], results: Sequence[Result]) -> Path:
    """Write :func:`junit_document` as UTF-8, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    return files.write_text(
        path, '<?xml version="1.0" encoding="UTF-8"?>\n' + junit_document(results)
    )


def _seconds(result: Result) -> float:
    return (result["timing"] or {}).get("seconds") or 0.0
