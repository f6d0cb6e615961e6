# SPDX-License-Identifier: Apache-2.0
"""Which modules a repair should reset, by what a scan found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2defense.checkpoint import CheckpointSource, file_sha256
from d2defense.report.results import RESULT_FILE, read_result


def load_evidence(path: Path, source: CheckpointSource) -> dict[str, Any]:
    """The result of an earlier scan of this very checkpoint.

    Args:
        path: a ``result.json``, or the folder that holds it.
        source: the checkpoint that will be repaired.

    Raises:
        ValueError: the file is no result, that of a failed scan, or of other weights; the message
            names it.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    result = read_result(path)
    if result["verdict"] == "error":
        raise ValueError(f"no evidence of what to reset: {result['error']}")
    if result["checkpoint"]["sha256"] != file_sha256(source.weights):
        raise ValueError(f"{path}: is the result of other weights than {source.weights}")
    return result


def describe_modules(result: dict[str, Any]) -> str:
    """One sentence on what a scan says of the modules to reset."""
    modules = ", ".join(result["dominant_modules"])
    if modules:
        return f"{result['verdict']} by the scan, which names {modules}"
    return f"{result['verdict']} by the scan, which names no module: those that classify proposals"
