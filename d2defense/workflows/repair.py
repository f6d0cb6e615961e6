# SPDX-License-Identifier: Apache-2.0
"""A repair with its evidence: scan, fine-tune, scan again, measure before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from d2defense.attacks import Trigger
from d2defense.checkpoint import CheckpointSource, build_detector, find_checkpoints
from d2defense.data import DatasetSource
from d2defense.data.overlap import check_disjoint
from d2defense.detection import Calibration, ScanSettings
from d2defense.evaluation import evaluate_detector
from d2defense.files import write_json
from d2defense.modeling import module_group_parameters
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.report.html import REPORT_FILE, write_repair_report

from .classes import check_classes
from .evidence import describe_modules, load_evidence
from .fine_tuning import FineTuned, FineTuningOptions, fine_tune, fine_tuning_config
from .labels import require_objects
from .scan import find_sources, scan

SUMMARY_FILE = "report.json"
SCAN_BEFORE, SCAN_AFTER = "scan_before", "scan_after"


@dataclass(frozen=True)
class RepairedCheckpoint:
    """A repaired checkpoint and what is known of it.

    Attributes:
        fine_tuned: what was done.
        summary: as in ``report.json``.
        report: path of ``report.html``.
    """

    fine_tuned: FineTuned
    summary: dict[str, Any]
    report: Path


def repair_checkpoint(
    source: CheckpointSource,
    defender: DatasetSource,
    test: DatasetSource | None,
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    trigger: Trigger,
    options: FineTuningOptions,
    evidence: Path | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> RepairedCheckpoint:
    """Repair a checkpoint and report on it.

    Args:
        source: a checkpoint without an error.
        defender: clean labelled images to fine-tune on.
        test: others to scan and measure with; the defender's own set if None, which says less.
        output_dir: the repaired checkpoint's Detectron2 output folder; also gets ``report.html``,
            ``report.json`` and a folder for each scan.
        settings: of the scans.
        calibration: of the scans.
        trigger: on every object of the triggered images that are measured.
        options: of the repair; modules that are None are those that a scan names.
        evidence: ``result.json`` of an earlier scan; the checkpoint is scanned if None.
        device: of the models; their configs' choice if None.
        say: told in one line what comes next.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DatasetError: a dataset cannot be used, or the two share images.
        ValueError: bad options; see :func:`fine_tune` and :func:`load_evidence`.
    """
    cfg = fine_tuning_config(source, defender, output_dir, options, device)
    if options.modules:
        # Before minutes are spent on a scan.
        module_group_parameters(build_model(cfg), list(options.modules))
    measured = test or defender
    if test is not None:
        # Else it would be found wrong after the fine-tuning.
        require_objects(test.name, test.load_usable())
        check_classes(test.name, cfg)
        check_disjoint(defender.name, defender.load(), test.name, test.load())
    if evidence is not None:
        before = load_evidence(evidence, source)
    else:
        say(f"Scanning {source.name} with images of {measured.name} ...")
        before = _scan_one(
            source.path, measured, output_dir / SCAN_BEFORE, settings, calibration, device
        )
    if options.modules is None and REMOVAL_REGISTRY.get(options.method).resets_modules:
        say(describe_modules(before) + ".")
        options = replace(options, modules=before["dominant_modules"] or None)
    say(f"Fine-tuning on {defender.name} ({options.method}) ...")
    fine_tuned = fine_tune(source, defender, output_dir, options, device)
    say("Scanning and measuring the repaired checkpoint ...")
    after = _scan_one(output_dir, measured, output_dir / SCAN_AFTER, settings, calibration, device)
    (repaired,) = find_checkpoints([output_dir / "model_final.pth"], only_final=True)
    summary = {
        "checkpoint": source.name,
        "output": str(output_dir),
        "method": options.method,
        "modules": list(fine_tuned.modules),
        "seconds": fine_tuned.seconds,
        "defender": defender.name,
        "measured_on": measured.name,
        "measured_on_training_images": test is None,
        "before": measure(source, measured, trigger, before, "before", device),
        "after": measure(repaired, measured, trigger, after, "after", device),
    }
    write_json(output_dir / SUMMARY_FILE, summary)
    results = [before | {"name": SCAN_BEFORE}, after | {"name": SCAN_AFTER}]
    report = write_repair_report(output_dir / REPORT_FILE, results, summary, {})
    return RepairedCheckpoint(fine_tuned, summary, report)


def measure(
    source: CheckpointSource,
    dataset: DatasetSource,
    trigger: Trigger,
    scanned: dict[str, Any],
    label: str,
    device: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint detects on clean and triggered images, beside its verdict.

    Args:
        source: the checkpoint.
        dataset: images to measure on.
        trigger: on every object of the triggered images.
        scanned: result of its scan.
        label: of the progress bar.
        device: of the model; its config's choice if None.
    """
    model, cfg = build_detector(source.weights, source.config, device)
    check_classes(dataset.ensure(), cfg)
    return measure_detector(model, cfg, dataset.name, trigger, scanned, label)


def measure_detector(
    model: nn.Module,
    cfg: CfgNode,
    dataset_name: str,
    trigger: Trigger,
    scanned: dict[str, Any],
    label: str,
) -> dict[str, Any]:
    """:func:`measure` of a detector that is loaded already."""
    evaluation = evaluate_detector(model, cfg, dataset_name, trigger, progress=label)
    return {
        "AP50_clean": evaluation["clean"]["AP50"],
        "AP50_triggered": evaluation["triggered"]["AP50"],
        "asr": evaluation["asr"],
        "objects_found_clean": evaluation["clean"].pop("objects_found"),
        "objects_found_triggered": evaluation["triggered"].pop("objects_found"),
        "clean": evaluation["clean"],
        "triggered": evaluation["triggered"],
        "verdict": scanned["verdict"],
        "score": scanned["score"],
    }


def _scan_one(
    path: Path,
    dataset: DatasetSource,
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None,
) -> dict[str, Any]:
    found = find_sources([path], only_final=True)
    (result,) = scan(found, dataset, output_dir, settings, calibration, device)
    return result


def format_repair(summary: dict[str, Any]) -> str:
    """A table of a repair: each measure before and after, and what it was measured on."""
    before, after = summary["before"], summary["after"]
    rows = [
        (label, _cell(before[key], digits), _cell(after[key], digits))
        for label, key, digits in (
            ("verdict", "verdict", 0),
            ("score", "score", 3),
            ("objects found, clean images", "objects_found_clean", 3),
            ("objects found, triggered images", "objects_found_triggered", 3),
            ("attack success rate", "asr", 3),
            ("AP50, clean images", "AP50_clean", 1),
            ("AP50, triggered images", "AP50_triggered", 1),
        )
    ]
    table = tabulate(rows, ("", "before", "after"), tablefmt="simple", disable_numparse=True)
    reset = ", ".join(summary["modules"]) or "nothing"
    lines = [
        f"{summary['output']}: {summary['method']}, reset {reset}, {summary['seconds']:.0f} s",
        table,
        f"measured on {summary['measured_on']}",
    ]
    if summary["measured_on_training_images"]:
        lines[-1] += ", the images it was fine-tuned on: give --test-dataset for a fair measure"
    return "\n".join(lines)


def _cell(value: float | str | None, digits: int) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"
