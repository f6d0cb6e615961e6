# SPDX-License-Identifier: Apache-2.0
"""Evaluation of checkpoints on clean and triggered images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from d2defense.attacks import Trigger
from d2defense.checkpoint import CheckpointError, build_detector, find_checkpoints
from d2defense.data import DatasetError, DatasetSource
from d2defense.evaluation import AP_METRICS, evaluate_detector

from .classes import check_classes


def evaluate(
    paths: Iterable[str | Path],
    dataset: DatasetSource,
    trigger: Trigger,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """:func:`d2defense.evaluation.evaluate_detector` of every checkpoint below ``paths``.

    Returns:
        One dict a checkpoint: its ``name``, ``error`` (None or one line), and the evaluation.

    Raises:
        DatasetError: the dataset cannot be used.
    """
    dataset.load()
    name = dataset.ensure()
    results = []
    for source in find_checkpoints(paths):
        try:
            if source.error:
                raise source.error
            model, cfg = build_detector(source.weights, source.config, device)
            check_classes(name, cfg)
        except (CheckpointError, DatasetError) as error:
            results.append({"name": source.name, "error": str(error)})
            continue
        evaluation = evaluate_detector(model, cfg, name, trigger, progress=source.name)
        results.append({"name": source.name, "error": None, **evaluation})
    return results


def format_evaluation(results: Sequence[dict[str, Any]]) -> str:
    """A table of evaluations: two lines a checkpoint, then the errors."""
    rows = []
    for result in results:
        if result["error"]:
            continue
        for condition in ("clean", "triggered"):
            metrics = result[condition]
            rows.append(
                [
                    result["name"],
                    condition,
                    *(_cell(metrics[name], 1) for name in AP_METRICS),
                    _cell(metrics["objects_found"], 3),
                    _cell(result["asr"], 3) if condition == "triggered" else "",
                ]
            )
    headers = ["checkpoint", "images", *AP_METRICS, "objects found", "ASR"]
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True)
    errors = [f"error: {result['error']}" for result in results if result["error"]]
    return "\n".join([table, *errors])


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
