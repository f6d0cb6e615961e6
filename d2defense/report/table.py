# SPDX-License-Identifier: Apache-2.0
"""A scan's results as a terminal table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from d2defense import files, text
from d2defense.report.findings import reacting_trigger
from d2defense.report.results import (
    SCHEMA_VERSION,
    Result,
    by_severity,
    count_verdicts,
    exit_code,
    found_by_search,
    statistic_of_worst_trigger,
)

#: Names of the summaries of a scan.
SUMMARY_FILES = ("summary.csv", "summary.json")
_NAME_WIDTH = 40
#: Columns of ``summary.csv`` and keys of each entry in ``summary.json``.
SUMMARY_FIELDS = (
    "name",
    "verdict",
    "reason",
    "score",
    "score_low",
    "score_high",
    "threshold",
    "p_value",
    "worst_trigger",
    "dominant_modules",
    "objects_found_clean",
    "objects_found_triggered",
    "path",
    "member",
    "copies",
    "left_out",
    "sha256",
    "seconds",
    "warnings",
    "error",
)


def describe_counts(counts: dict[str, int]) -> str:
    """Counts by verdict in words, zeros left out: ``3 backdoored, 1 error, 2 clean``."""
    words = {"error": ("error", "errors")}
    parts = []
    for verdict, count in counts.items():
        if count:
            singular, plural = words.get(verdict, (verdict, verdict))
            parts.append(f"{count} {singular if count == 1 else plural}")
    return ", ".join(parts) or "nothing scanned"


def format_table(
    results: Sequence[Result],
    left_out: Sequence[tuple[Path, str]] = (),
    truth: Mapping[str, str] | None = None,
) -> str:
    """The terminal's table: what needs attention first, errors and notes below, then counts.

    Control characters in names are shown escaped, so that a file name cannot drive the terminal.

    Args:
        results: of a scan.
        left_out: paths that were passed over, and why.
        truth: what a detector is known to be, by its name, for a last column; none if None.
    """
    rows, notes = [], []
    # By the line, so that what holds for all is said once.
    errors: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for result in by_severity(results):
        name = text.shorten(result["name"], _NAME_WIDTH)
        has_score = result["score"] is not None
        rows.append(
            (
                result["verdict"].upper()
                if result["verdict"] == "backdoored"
                else result["verdict"],
                name,
                f"{text.number(result['score'])} {text.interval(result['score_interval'])}"
                if has_score
                else text.DASH,
                text.number(result["threshold"]),
                text.probability(result["p_value"]),
                text.shorten(reacting_trigger(result), _NAME_WIDTH),
                text.shorten(", ".join(result["dominant_modules"] or []) or text.DASH, _NAME_WIDTH),
                _under_the_trigger(result),
                *([] if truth is None else [truth.get(result["name"], text.DASH)]),
            )
        )
        if result["verdict"] == "uncertain" and result.get("reason"):
            errors.setdefault(f"uncertain: {text.printable(result['reason'])}", []).append(name)
        if result["error"]:
            errors.setdefault(text.printable(result["error"]), []).append(name)
        for line in result["warnings"]:
            warnings.setdefault(f"warning: {text.printable(line)}", []).append(name)
        copies = (result["checkpoint"] or {}).get("copies") or []
        notes += [f"{name}: the same bytes: {text.printable(path)}" for path in copies]
    parts = []
    if rows:
        headers = (
            "verdict",
            "checkpoint",
            "score",
            "threshold",
            "p",
            "worst trigger",
            "dominant modules",
            "under the trigger",
            *([] if truth is None else ["in truth"]),
        )
        # Numbers are formatted above; parsing would also rewrite checkpoint names like "1e5".
        parts.append(tabulate(rows, headers, tablefmt="simple", disable_numparse=True))
    notes += [text.printable(f"left out: {path}: {reason}") for path, reason in left_out]
    said = [
        f"{names[0] if len(names) == 1 else f'{len(names)} checkpoints'}: {line}"
        for line, names in (*errors.items(), *warnings.items())
    ]
    for lines in (said, notes):
        if lines:
            parts.append("\n".join(lines))
    parts.append(describe_counts(count_verdicts(results)))
    return "\n\n".join(parts)


def _under_the_trigger(result: Result) -> str:
    """What the trigger does that the verdict rests on: the bank's worst, or one that was found."""
    found = found_by_search(result)
    if found:
        others = found["references"]
        held = f" (references {text.number(sum(others) / len(others))})" if others else ""
        return f"succeeds {text.number(found['success'])}{held}"
    objects = statistic_of_worst_trigger(result, "objects_found")
    if not objects:
        return text.DASH
    before, after = (text.number(objects.get(key)) for key in ("clean", "triggered"))
    return f"finds {before} \N{RIGHTWARDS ARROW} {after}"


def summary_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat dictionary with :data:`SUMMARY_FIELDS` a result, by severity."""
    rows = []
    for result in by_severity(results):
        low, high = result["score_interval"] or (None, None)
        found = statistic_of_worst_trigger(result, "objects_found")
        checkpoint = result["checkpoint"] or {}
        rows.append(
            {
                "name": result["name"],
                "verdict": result["verdict"],
                "reason": result.get("reason"),
                "score": result["score"],
                "score_low": low,
                "score_high": high,
                "threshold": result["threshold"],
                "p_value": result["p_value"],
                "worst_trigger": result["worst_trigger"],
                "dominant_modules": list(result["dominant_modules"] or []),
                "objects_found_clean": found.get("clean"),
                "objects_found_triggered": found.get("triggered"),
                "path": checkpoint.get("path"),
                "member": checkpoint.get("member"),
                "copies": list(checkpoint.get("copies") or []),
                "left_out": list(checkpoint.get("left_out") or []),
                "sha256": checkpoint.get("sha256"),
                "seconds": (result["timing"] or {}).get("seconds"),
                "warnings": list(result["warnings"]),
                "error": result["error"],
            }
        )
    return rows


def summarize(
    results: Sequence[Result], left_out: Sequence[tuple[Path, str]] = ()
) -> dict[str, Any]:
    """What ``summary.json`` holds: counts by verdict, the exit code, and one entry a result.

    Args:
        results: of a scan.
        left_out: paths that were passed over, and why.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "counts": count_verdicts(results),
        "exit_code": exit_code(results),
        "results": summary_rows(results),
        "left_out": [{"path": str(path), "reason": reason} for path, reason in left_out],
    }


def write_summary_json(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    left_out: Sequence[tuple[Path, str]] = (),
) -> Path:
    """Write :func:`summarize` as JSON."""
    return files.write_json(path, summarize(results, left_out))


def _csv_cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        value = (" " if name == "dominant_modules" else " | ").join(map(str, value))
    return text.table_cell(value) if isinstance(value, str) else value


def write_summary_csv(path: str | os.PathLike[str], results: Sequence[Result]) -> Path:
    """Write :func:`summary_rows` as CSV: no data is an empty cell, modules are separated by
    spaces, paths and warnings by ` | `.

    Text that a spreadsheet would take for a formula gets a leading ``'``.
    """
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, SUMMARY_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in summary_rows(results):
        writer.writerow({name: _csv_cell(name, value) for name, value in row.items()})
    return files.write_text(path, stream.getvalue())
