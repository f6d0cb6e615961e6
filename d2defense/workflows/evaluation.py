# SPDX-License-Identifier: Apache-2.0
"""Evaluation of checkpoints on clean and triggered images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from d2defense.attacks import Effect
from d2defense.checkpoint import (
    CheckpointError,
    CheckpointSource,
    build_detector,
    find_checkpoints,
)
from d2defense.data import DatasetError, DatasetSource
from d2defense.evaluation import (
    AP_METRICS,
    CONDITIONS,
    POISONED,
    TRIGGERED,
    describe_coverage,
    evaluate_detector,
    judge_attack,
)
from d2defense.statistics import ObservationSettings
from d2defense.triggers import Trigger

from .classes import check_classes


def evaluate(
    paths: Iterable[str | Path],
    dataset: DatasetSource,
    trigger: Trigger,
    device: str | None = None,
    settings: ObservationSettings | None = None,
    effect: Effect | None = None,
    control: Iterable[str | Path] = (),
) -> list[dict[str, Any]]:
    """:func:`d2defense.evaluation.evaluate_detector` of every checkpoint below ``paths``.

    Args:
        paths: weights, output folders, or folders of them.
        dataset: images to measure on, with the detectors' classes.
        trigger: on the triggered images.
        device: of the models; their configs' choice if None.
        settings: how proposals are reduced; the defaults if None.
        effect: says where the trigger goes and what success is; disappearance if None.
        control: clean detectors, given as ``paths`` are, under the same trigger.

    Returns:
        One dict a checkpoint: its ``name``, ``error`` (None or one line), and the evaluation;
        ``control``, the ASR of each of its detectors by name, and ``control_asr``, their mean over
        those that have one.

    Raises:
        DatasetError: the dataset cannot be used, or an image of it cannot.
        ValueError: a detector of the control cannot be used.
    """
    dataset.load_usable()

    def measure(source: CheckpointSource) -> dict[str, Any]:
        return _measure(source, dataset, trigger, device, settings, effect)

    rates = _control_rates(find_checkpoints(control, only_final=True), measure)
    known = [rate for rate in rates.values() if rate is not None]
    control_asr = statistics.fmean(known) if known else None
    results = []
    for source in find_checkpoints(paths, only_final=True):
        result = measure(source)
        if not result["error"]:
            result |= {"control": rates, **judge_attack(result["asr"], control_asr)}
        results.append(result)
    return results


def _control_rates(
    sources: Sequence[CheckpointSource], measure: Callable[[CheckpointSource], dict[str, Any]]
) -> dict[str, float | None]:
    """The ASR of clean detectors by name.

    Raises:
        ValueError: one of them cannot be used; those that cannot be read before any is measured.
    """
    for source in sources:
        if source.error:
            raise ValueError(f"control: {source.error}")
    rates = {}
    for source in sources:
        result = measure(source)
        if result["error"]:
            raise ValueError(f"control: {result['error']}")
        rates[source.name] = result["asr"]
    return rates


def _measure(
    source: CheckpointSource,
    dataset: DatasetSource,
    trigger: Trigger,
    device: str | None,
    settings: ObservationSettings | None,
    effect: Effect | None,
) -> dict[str, Any]:
    try:
        if source.error:
            raise source.error
        model, cfg = build_detector(source.weights, source.config, device)
        check_classes(dataset.name, cfg)
    except (CheckpointError, DatasetError) as error:
        return {"name": source.name, "error": str(error)}
    evaluation = evaluate_detector(model, cfg, dataset.name, trigger, source.name, settings, effect)
    return {"name": source.name, "error": None, **evaluation}


def format_evaluation(results: Sequence[dict[str, Any]]) -> str:
    """Evaluations in words.

    A table of what each detector detects, and one of what the attack does to it; which attacks did
    not take, and why; the ASR of each detector of the control; what the attack was not measured on;
    errors.
    """
    measured = [result for result in results if not result["error"]]
    blocks = []
    if measured:
        detected = [row for result in measured for row in _detected(result)]
        blocks += [_table(_DETECTED, detected), _table(_ATTACKED, map(_attacked, measured))]
    notes = [
        f"{result['name']}: the attack did not take: {result['reason']}"
        for result in measured
        if not result["attack_took"]
    ]
    if notes:
        notes.append(
            "Right for a clean or a repaired detector, not for one said to be backdoored with this "
            "trigger."
        )
    for result in measured[:1]:
        notes += [
            f"control {name}: ASR {_cell(asr, 3)}"
            for name, asr in result.get("control", {}).items()
        ]
    # The same of each detector.
    notes += dict.fromkeys(filter(None, (describe_coverage(each["coverage"]) for each in measured)))
    notes += [f"error: {result['error']}" for result in results if result["error"]]
    if notes:
        blocks.append("\n".join(notes))
    return "\n\n".join(blocks)


_DETECTED = ("checkpoint", "images", *AP_METRICS, "objects found", "extra detections", "tau", "gap")
_ATTACKED = ("checkpoint", "effect", "ASR", "control ASR", "TDR", "retain rate", "attack")


def _detected(result: dict[str, Any]) -> list[list[str]]:
    """The rows of a detector in the first table: clean, triggered, against poisoned labels."""
    rows = []
    for condition in CONDITIONS:
        of = result[condition]
        rows.append(
            [
                result["name"],
                condition,
                *(_cell(of[name], 1) for name in AP_METRICS),
                _cell(of["objects_found"], 3),
                _cell(of["extra_detections"], 2),
                *(_cell(of["statistics"][name], 3) for name in ("tau", "gap")),
            ]
        )
    against = [_cell(result[POISONED][name], 1) for name in AP_METRICS]
    rows.append([result["name"], f"{TRIGGERED}, {POISONED} labels", *against])
    return rows


def _attacked(result: dict[str, Any]) -> list[str]:
    """The row of a detector in the second table."""
    rates = (_cell(result[key], 3) for key in ("asr", "control_asr", "tdr", "retain_rate"))
    took = "took" if result["attack_took"] else "did not take"
    return [result["name"], result["effect"], *rates, took]


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return tabulate(list(rows), headers, tablefmt="simple", disable_numparse=True)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
