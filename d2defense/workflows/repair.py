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

from d2defense.checkpoint import CheckpointSource, build_detector, find_checkpoints
from d2defense.data import DatasetSource
from d2defense.data.overlap import check_disjoint
from d2defense.detection import Calibration, ScanImages, ScanSettings, load_clean_images
from d2defense.evaluation import evaluate_detector
from d2defense.files import write_json
from d2defense.modeling import module_group_parameters
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.report.examples import Example
from d2defense.report.html import REPORT_FILE, write_repair_report
from d2defense.report.repair_figures import ShownDetector, draw_repair
from d2defense.triggers import Trigger

from .classes import check_classes
from .evidence import describe_modules, load_evidence
from .examples import example_pairs
from .fine_tuning import (
    FineTuned,
    FineTuningOptions,
    describe_batch,
    fine_tune,
    fine_tuning_config,
)
from .labels import require_objects
from .scan import find_sources, scan

SUMMARY_FILE = "report.json"
SCAN_BEFORE, SCAN_AFTER = "scan_before", "scan_after"
EXAMPLE_IMAGES = 3


@dataclass(frozen=True)
class ScannedDetector:
    """A detector with what a scan says of it.

    Attributes:
        source: a checkpoint without an error.
        result: of its scan.
    """

    source: CheckpointSource
    result: dict[str, Any]


@dataclass(frozen=True)
class RepairTask:
    """A repair as it is asked for.

    Attributes:
        source: a checkpoint without an error.
        defender: clean labelled images to fine-tune on.
        test: others to scan and measure with; the defender's own set if None, which says less.
        settings: of the scans.
        calibration: of the scans.
        trigger: on every object of the triggered images that are measured and shown.
        options: of the fine-tuning; modules that are None are those that a scan names.
        evidence: ``result.json`` of an earlier scan, or its folder; the checkpoint is scanned if
            None.
        beside: a clean detector to show beside the repaired one, if there is one.
        device: of the models; their configs' choice if None.
    """

    source: CheckpointSource
    defender: DatasetSource
    test: DatasetSource | None
    settings: ScanSettings
    calibration: Calibration
    trigger: Trigger
    options: FineTuningOptions
    evidence: Path | None = None
    beside: ScannedDetector | None = None
    device: str | None = None

    @property
    def measured(self) -> DatasetSource:
        """Images to scan and measure with."""
        return self.test or self.defender


@dataclass(frozen=True)
class RepairedCheckpoint:
    """A repaired checkpoint and what is known of it.

    Attributes:
        fine_tuned: what was done.
        summary: as in ``report.json``.
        figures: PNG files by name, as in the report.
        report: path of ``report.html``.
    """

    fine_tuned: FineTuned
    summary: dict[str, Any]
    figures: dict[str, bytes]
    report: Path


def repair_checkpoint(
    task: RepairTask, output_dir: Path, say: Callable[[str], None] = print
) -> RepairedCheckpoint:
    """Repair a checkpoint and report on it.

    Args:
        task: what to repair, and with what.
        output_dir: the repaired checkpoint's Detectron2 output folder; also gets ``report.html``,
            ``report.json`` and a folder for each scan.
        say: told in one line what comes next.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DatasetError: a dataset cannot be used, or the two share images.
        ValueError: bad options; see :func:`fine_tune` and :func:`load_evidence`.
    """
    _check(task, output_dir)
    source, defender, measured = task.source, task.defender, task.measured
    if task.evidence is not None:
        before = load_evidence(task.evidence, source)
    else:
        say(f"Scanning {source.name} with images of {measured.name} ...")
        before = _scan(task, source.path, output_dir / SCAN_BEFORE)
    options = task.options
    if options.modules is None and REMOVAL_REGISTRY.get(options.method).resets_modules:
        say(describe_modules(before) + ".")
        options = replace(options, modules=before["dominant_modules"] or None)
    say(f"Fine-tuning on {defender.name} ({options.method}) ...")
    fine_tuned = fine_tune(source, defender, output_dir, options, task.device, say)
    say(f"Scanning and measuring the repaired checkpoint on {measured.name} ...")
    after = _scan(task, output_dir, output_dir / SCAN_AFTER)
    (repaired,) = find_checkpoints([output_dir / "model_final.pth"], only_final=True)
    images = ScanImages.load(measured, task.settings)
    measures_before, shown_before = _measure(task, source, images, before, "before")
    measures_after, shown_after = _measure(task, repaired, images, after, "after")
    summary = {
        "checkpoint": source.name,
        "output": str(output_dir),
        "method": options.method,
        "modules": list(fine_tuned.modules),
        "seconds": fine_tuned.seconds,
        "batch_size": fine_tuned.batch_size,
        "images_at_once": fine_tuned.images_at_once,
        "defender": defender.name,
        "measured_on": measured.name,
        "measured_on_training_images": task.test is None,
        "before": measures_before,
        "after": measures_after,
    }
    write_json(output_dir / SUMMARY_FILE, summary)
    epsilon = task.settings.observation.epsilon
    figures = draw_repair(shown_before, shown_after, _beside(task, images), epsilon)
    results = [before | {"name": SCAN_BEFORE}, after | {"name": SCAN_AFTER}]
    report = write_repair_report(output_dir / REPORT_FILE, results, summary, figures)
    return RepairedCheckpoint(fine_tuned, summary, figures, report)


def _check(task: RepairTask, output_dir: Path) -> None:
    """Find wrong before minutes are spent what can be."""
    cfg = fine_tuning_config(task.source, task.defender, output_dir, task.options, task.device)
    if task.options.modules:
        module_group_parameters(build_model(cfg), list(task.options.modules))
    if task.test is not None:
        require_objects(task.test.name, task.test.load_usable())
        check_classes(task.test.name, cfg)
        check_disjoint(task.defender.name, task.defender.load(), task.test.name, task.test.load())


def _scan(task: RepairTask, path: Path, output_dir: Path) -> dict[str, Any]:
    found = find_sources([path], only_final=True)
    (result,) = scan(found, task.measured, output_dir, task.settings, task.calibration, task.device)
    return result


def _measure(
    task: RepairTask,
    source: CheckpointSource,
    images: ScanImages,
    scanned: dict[str, Any],
    when: str,
) -> tuple[dict[str, Any], ShownDetector]:
    """What a checkpoint detects on clean and triggered images beside its verdict, and how it looks.

    Args:
        task: what is repaired.
        source: the checkpoint before or after.
        images: whose first ones are shown.
        scanned: result of its scan.
        when: "before" or "after".
    """
    model, cfg = build_detector(source.weights, source.config, task.device)
    check_classes(task.measured.name, cfg)
    evaluation = evaluate_detector(model, cfg, task.measured.name, task.trigger, progress=when)
    measures = {
        "AP50_clean": evaluation["clean"]["AP50"],
        "AP50_triggered": evaluation["triggered"]["AP50"],
        "asr": evaluation["asr"],
        "objects_found_clean": evaluation["clean"].pop("objects_found"),
        "objects_found_triggered": evaluation["triggered"].pop("objects_found"),
        "clean": evaluation["clean"],
        "triggered": evaluation["triggered"],
        "verdict": scanned["verdict"],
        "score": scanned["score"],
        "scanned_on": (scanned["dataset"] or {}).get("name"),
    }
    label = f"{task.source.name}, {when} the repair"
    return measures, ShownDetector(label, scanned, _examples(task, model, cfg, images))


def _beside(task: RepairTask, images: ScanImages) -> ShownDetector | None:
    if task.beside is None:
        return None
    source = task.beside.source
    model, cfg = build_detector(source.weights, source.config, task.device)
    return ShownDetector(source.name, task.beside.result, _examples(task, model, cfg, images))


def _examples(
    task: RepairTask, model: nn.Module, cfg: CfgNode, images: ScanImages
) -> list[tuple[Example, Example]]:
    shown = load_clean_images(images.records[:EXAMPLE_IMAGES], cfg)
    return example_pairs(model, shown, task.trigger, cfg.INPUT.FORMAT, images.class_names)


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
        f"{summary['output']}: {summary['method']}, reset {reset}, {summary['seconds']:.0f} s, "
        + describe_batch(summary["batch_size"], summary["images_at_once"]),
        table,
        f"measured on {summary['measured_on']}",
    ]
    if before["scanned_on"] not in (None, summary["measured_on"]):
        lines[-1] += f", the score before on {before['scanned_on']}"
    if summary["measured_on_training_images"]:
        lines[-1] += ", the images it was fine-tuned on: give --test-dataset for a fair measure"
    return "\n".join(lines)


def _cell(value: float | str | None, digits: int) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"
