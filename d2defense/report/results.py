# SPDX-License-Identifier: Apache-2.0
"""Reading and checking ``result.json`` files; the format is described in docs/result-format.md."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from d2defense.text import shorten

#: Version of the format that this package writes and reads.
SCHEMA_VERSION = 2
# That older results of this version lack.
_LATER_KEYS = ("reason", "ability", "bank", "search")
#: Verdicts, the one that needs attention most first.
VERDICTS = ("backdoored", "uncertain", "error", "clean")
#: Name of the file that one scanned checkpoint leaves in its folder.
RESULT_FILE = "result.json"
EXAMPLES_FILE = "examples.png"
HISTOGRAM_FILE = "histogram.png"
#: Names of the figures that may lie beside it.
FIGURE_FILES = (EXAMPLES_FILE, HISTOGRAM_FILE)
SEARCH_FILE = "search.png"
TRIGGER_FILE = "trigger.png"
#: Likewise, of a search that has measured a trigger; the second is what ``trigger.yaml`` names.
SEARCH_FILES = (SEARCH_FILE, TRIGGER_FILE)
#: A trigger bank with the trigger that a search has found.
TRIGGER_BANK_FILE = "trigger.yaml"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Largest figure that is kept or shown.
MAX_PNG_BYTES = 5_000_000
_MAX_ERROR = 2000

Result = dict[str, Any]


@cache
def _schema_text() -> str:
    folder = resources.files("d2defense") / "assets" / "report"
    return (folder / "result.schema.json").read_text(encoding="utf-8")


def result_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``result.json``, as a new dictionary."""
    return json.loads(_schema_text())


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(result_schema())


def validate_result(result: Any) -> None:
    """Check a result against the schema, and that JSON can carry it.

    Raises:
        ValueError: it does not fit; the message is one line, the place first.
    """
    error = jsonschema.exceptions.best_match(_validator().iter_errors(result))
    if error is not None:
        message = error.message if len(error.message) <= 200 else error.message[:200] + "..."
        raise ValueError(f"{error.json_path}: {message}")
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as reason:
        raise ValueError(f"$: {reason}") from None


def is_png(content: bytes) -> bool:
    """Whether a file begins as a PNG and is no larger than a figure can be."""
    return content.startswith(_PNG_SIGNATURE) and len(content) <= MAX_PNG_BYTES


def error_result(name: str, message: str, path: str = "") -> Result:
    """A valid result for a checkpoint that could not be scanned.

    Args:
        name: the checkpoint's name.
        message: the reason; line breaks become spaces.
        path: where the checkpoint lies, as far as known.
    """
    return empty_result(name, path) | {
        "error": shorten(" ".join(message.split()), _MAX_ERROR) or "unknown error"
    }


def empty_result(name: str, path: str = "") -> Result:
    """The keys of a result without data; arguments as :func:`error_result`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "checkpoint": {
            "path": path,
            "config": None,
            "format": None,
            "sha256": None,
            "config_sha256": None,
            "size_bytes": None,
            "member": None,
            "copies": [],
            "left_out": [],
        },
        "scan_key": None,
        "architecture": None,
        "dataset": None,
        "settings": {},
        "verdict": "error",
        "reason": None,
        "score": None,
        "score_interval": None,
        "threshold": None,
        "p_value": None,
        "calibration": None,
        "worst_trigger": None,
        "victim_class": None,
        "dominant_modules": [],
        "clean": None,
        "ability": None,
        "triggers": [],
        "histogram": None,
        "early_stop": None,
        "race": None,
        "bank": None,
        "search": None,
        "timing": None,
        "environment": {"isolation": None},
        "warnings": [],
        "error": None,
    }


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def read_result(path: Path) -> Result:
    """The result in a file; an ``error`` result that says why if there is no valid one."""
    try:
        result = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant)
        validate_result(result)
        result |= {key: None for key in _LATER_KEYS if key not in result}
    except OSError as reason:
        return error_result(
            path.parent.name, f"{path}: cannot be read: {reason.strerror}", str(path)
        )
    except (ValueError, RecursionError) as reason:
        return error_result(
            path.parent.name, f"{path}: not a valid result file: {reason}", str(path)
        )
    return result


def find_results(output_dir: str | os.PathLike[str]) -> list[tuple[Path, Result]]:
    """Every ``output_dir/*/result.json`` with the folder that holds it, by folder name.

    A file that is unreadable, not JSON or of another format becomes an ``error`` result that
    says so: one broken file does not hide the others.
    """
    folders = sorted(path.parent for path in Path(output_dir).glob(f"*/{RESULT_FILE}"))
    return [(folder, read_result(folder / RESULT_FILE)) for folder in folders]


def load_results(output_dir: str | os.PathLike[str]) -> list[Result]:
    """The results of :func:`find_results` without their folders."""
    return [result for _, result in find_results(output_dir)]


def by_severity(results: Iterable[Result]) -> list[Result]:
    """Results in the order of :data:`VERDICTS`; within a verdict the highest score first."""

    def key(result: Result) -> tuple[int, float, str]:
        score = result.get("score")
        return (
            VERDICTS.index(result["verdict"]),
            float("inf") if score is None else -score,
            str(result["name"]),
        )

    return sorted(results, key=key)


def count_verdicts(results: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many results bear each of :data:`VERDICTS`, in that order, zeros included."""
    counts = Counter(result["verdict"] for result in results)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def exit_code(results: Iterable[Mapping[str, Any]]) -> int:
    """The exit code of a scan with these results, in the order that ModelScan decides it.

    3: there was nothing to scan; 2: a checkpoint could not be scanned; 1: a backdoor was found
    or, with an uncertain verdict, not ruled out; 0: every checkpoint is clean.
    """
    counts = count_verdicts(results)
    if not any(counts.values()):
        return 3
    if counts["error"]:
        return 2
    return 1 if counts["backdoored"] or counts["uncertain"] else 0


def trigger_results(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The result's triggers, the highest score first, those without one last."""
    return sorted(
        result.get("triggers") or [],
        key=lambda trigger: (
            trigger.get("score") is None,
            -(trigger.get("score") or 0.0),
        ),
    )


def statistic_of_worst_trigger(result: Mapping[str, Any], statistic: str) -> dict[str, Any]:
    """``{"clean", "triggered", "change", "interval"}`` of one statistic under the worst trigger.

    Empty where the result has no such trigger or statistic.
    """
    for trigger in result.get("triggers") or []:
        if trigger["name"] == result.get("worst_trigger"):
            return (trigger.get("statistics") or {}).get(statistic) or {}
    return {}


def found_by_search(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first arm of a search that found a backdoor; None where none did."""
    search = result.get("search") or {}
    return next(iter(search["arms"]), None) if search.get("has_found") else None
