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
from d2defense.evaluation import AP_METRICS, CONDITIONS, TRIGGERED, evaluate_detector
from d2defense.statistics import SUCCESSFUL_ASR, ObservationSettings, attack_succeeded

from .classes import check_classes

_FAILS = "attack fails"


def evaluate(
    paths: Iterable[str | Path],
    dataset: DatasetSource,
    trigger: Trigger,
    device: str | None = None,
    settings: ObservationSettings | None = None,
) -> list[dict[str, Any]]:
    """:func:`d2defense.evaluation.evaluate_detector` of every checkpoint below ``paths``.

    Args:
        paths: weights, output folders, or folders of them.
        dataset: images to measure on, with the detectors' classes.
        trigger: on every object of the triggered images.
        device: of the models; their configs' choice if None.
        settings: how proposals are reduced; the defaults if None.

    Returns:
        One dict a checkpoint: its ``name``, ``error`` (None or one line), and the evaluation.

    Raises:
        DatasetError: the dataset cannot be used, or an image of it cannot.
    """
    dataset.load_usable()
    name = dataset.name
    results = []
    for source in find_checkpoints(paths, only_final=True):
        try:
            if source.error:
                raise source.error
            model, cfg = build_detector(source.weights, source.config, device)
            check_classes(name, cfg)
        except (CheckpointError, DatasetError) as error:
            results.append({"name": source.name, "error": str(error)})
            continue
        evaluation = evaluate_detector(model, cfg, name, trigger, source.name, settings)
        results.append({"name": source.name, "error": None, **evaluation})
    return results


def format_evaluation(results: Sequence[dict[str, Any]]) -> str:
    """A table of evaluations, two lines a checkpoint; then what it says of attacks; the errors."""
    measured = [result for result in results if not result["error"]]
    rows = [
        [
            result["name"],
            condition,
            *(_cell(result[condition][name], 1) for name in AP_METRICS),
            _cell(result[condition]["objects_found"], 3),
            *(_cell(result[condition]["statistics"][name], 3) for name in ("tau", "gap")),
            *(_attack_cells(result["asr"]) if condition == TRIGGERED else ("", "")),
        ]
        for result in measured
        for condition in CONDITIONS
    ]
    headers = ["checkpoint", "images", *AP_METRICS, "objects found", "tau", "gap", "ASR", "attack"]
    lines = [tabulate(rows, headers, tablefmt="simple", disable_numparse=True)]
    if any(attack_succeeded(result["asr"]) is False for result in measured):
        lines.append(
            f"{_FAILS}: the ASR is under {SUCCESSFUL_ASR}. Right for a clean or a repaired "
            "detector, not for one said to be backdoored with this trigger."
        )
    return "\n".join([*lines, *(f"error: {r['error']}" for r in results if r["error"])])


def _attack_cells(asr: float | None) -> tuple[str, str]:
    """The columns on the trigger's success."""
    return _cell(asr, 3), {True: "succeeds", False: _FAILS, None: "-"}[attack_succeeded(asr)]


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
