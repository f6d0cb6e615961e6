# SPDX-License-Identifier: Apache-2.0
"""A scan as SARIF 2.1.0, the format in which code hosts take the findings of scanners.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, errata 01.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import d2defense
from d2defense import files, text
from d2defense.report.findings import RULES, Rule, finding
from d2defense.report.results import Result, by_severity, count_verdicts, exit_code

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def sarif_log(
    results: Sequence[Result],
    left_out: Sequence[tuple[Path, str]] = (),
) -> dict[str, Any]:
    """The SARIF log of a scan.

    Checkpoints that are not clean are its results; what was looked at, clean ones included, are
    its artifacts; what was passed over are notifications. Addresses of files below the working
    folder are relative to it.

    Args:
        results: of a scan.
        left_out: paths that were passed over, and why.
    """
    root = Path.cwd()
    rows = [(result, finding(result)) for result in by_severity(results)]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "d2defense",
                        "version": d2defense.__version__,
                        "rules": [_rule(rule) for rule in RULES],
                    }
                },
                "invocations": [
                    {
                        "executionSuccessful": not count_verdicts(results)["error"],
                        "exitCode": exit_code(results),
                        "toolExecutionNotifications": [
                            {
                                "level": "note",
                                "message": _message(f"left out: {reason}"),
                                "locations": [_location(str(path), root)],
                            }
                            for path, reason in left_out
                        ],
                    }
                ],
                "artifacts": [_artifact(result, root) for result, _ in rows],
                "results": [
                    {
                        "ruleId": found.rule.verdict,
                        "ruleIndex": RULES.index(found.rule),
                        "level": found.rule.level,
                        "message": _message(f"{found.name}: {found.reason}"),
                        "locations": [_location(_path(result), root)],
                        "partialFingerprints": {"checkpoint/v1": _fingerprint(result)},
                        "properties": {
                            "score": result["score"],
                            "threshold": result["threshold"],
                            "warnings": [text.printable(line) for line in result["warnings"]],
                        },
                    }
                    for result, found in rows
                    if found.rule is not None
                ],
            }
        ],
    }


def write_sarif(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    left_out: Sequence[tuple[Path, str]] = (),
) -> Path:
    """Write :func:`sarif_log`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    return files.write_json(path, sarif_log(results, left_out))


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.verdict,
        "shortDescription": {"text": rule.title},
        "help": {"text": rule.help.replace("`", ""), "markdown": rule.help},
        "defaultConfiguration": {"level": rule.level},
        "properties": {"tags": ["security"], "security-severity": str(rule.severity)},
    }


def _message(message: str) -> dict[str, str]:
    """A message of words from outside, which must neither be a link nor hold placeholders.

    Sections 3.11.5 and 3.11.6 of the specification say how both are escaped.
    """
    message = text.printable(message).replace("\\", "\\\\")
    for character in "[]":
        message = message.replace(character, "\\" + character)
    return {"text": message.replace("{", "{{").replace("}", "}}")}


def _path(result: Result) -> str:
    return (result["checkpoint"] or {}).get("path") or result["name"]


def _address(path: str, root: Path) -> dict[str, str]:
    """The location of a file, whatever bytes its name is of."""
    whole = os.path.abspath(os.path.join(root, path.replace("\0", "")))
    inside = os.path.relpath(whole, root)
    if inside == os.pardir or inside.startswith(os.pardir + os.sep):
        return {"uri": "file://" + _quote(whole)}
    # Code hosts take what is relative to this base for a path in the repository.
    return {"uri": _quote(inside), "uriBaseId": "%SRCROOT%"}


def _quote(path: str) -> str:
    try:
        return quote(os.fsencode(path))
    except UnicodeEncodeError:
        return quote(path.encode("utf-8", "replace"))


def _location(path: str, root: Path) -> dict[str, Any]:
    # Weights have no lines; GitHub shows no finding without one.
    return {
        "physicalLocation": {"artifactLocation": _address(path, root), "region": {"startLine": 1}}
    }


def _artifact(result: Result, root: Path) -> dict[str, Any]:
    checkpoint = result["checkpoint"] or {}
    artifact: dict[str, Any] = {
        "location": _address(_path(result), root),
        "roles": ["analysisTarget"],
        "properties": {"verdict": result["verdict"]},
    }
    if checkpoint.get("sha256"):
        artifact["hashes"] = {"sha-256": checkpoint["sha256"]}
    if checkpoint.get("size_bytes"):
        artifact["length"] = checkpoint["size_bytes"]
    return artifact


def _fingerprint(result: Result) -> str:
    """The same for the same weights found in the same way, wherever the folder lies."""
    checkpoint = result["checkpoint"] or {}
    facts = (result["name"], checkpoint.get("sha256"), checkpoint.get("config_sha256"))
    return hashlib.sha256(repr(facts).encode("ascii", "backslashreplace")).hexdigest()
