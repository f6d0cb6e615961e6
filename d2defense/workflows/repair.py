# SPDX-License-Identifier: Apache-2.0
"""A repair with its evidence: scan, fine-tune, scan again, measure before and after, judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from d2defense.checkpoint import CheckpointSource, build_detector, find_checkpoints
from d2defense.checkpoint.output_folder import CONFIG_NAME, FINAL_WEIGHTS_NAME
from d2defense.data import DatasetSource
from d2defense.data.overlap import check_disjoint
from d2defense.detection import Calibration, ScanImages, ScanSettings, load_clean_images
from d2defense.detection.verdict import CLEAN
from d2defense.evaluation import evaluate_detector
from d2defense.files import write_json
from d2defense.modeling import module_group_parameters
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.report.examples import Example
from d2defense.report.page import REPORT_FILE
from d2defense.report.repair_figures import ShownDetector, draw_repair
from d2defense.report.repair_page import write_repair_report
from d2defense.triggers import Trigger

from .classes import check_classes
from .evidence import (
    KEEPING_METHOD,
    describe_method,
    describe_modules,
    excess_by_effect,
    informed,
    is_found_clean,
    load_evidence,
)
from .examples import example_pairs, most_changed
from .fine_tuning import (
    FineTuned,
    FineTuningOptions,
    describe_batch,
    fine_tune,
    fine_tuning_config,
)
from .labels import require_objects
from .scan import find_sources, scan
from .unfinished import RUN_FILE

SUMMARY_FILE = "report.json"
SCAN_BEFORE, SCAN_AFTER = "scan_before", "scan_after"
#: Folders of rounds whose result was not good enough.
ROUND = "round_{}"
EXAMPLE_IMAGES = 3
#: Of COCO's AP on clean images, what a repair may cost.
MAX_AP_DROP = 1.0


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
        choose_method: whether the method is the one that suits what a scan has found, in place of
            the options', in every round anew.
        evidence: ``result.json`` of an earlier scan, or its folder; the checkpoint is scanned if
            None.
        references: detectors of the same classes that are held to be clean, for the scans' search.
        max_ap_drop: by how much the AP on clean images may fall, 0..100.
        rounds: of fine-tuning at most; another one follows where the result is not repaired, and
            begins with it.
        pseudo_labelled: whether the defender's labels are the checkpoint's own detections.
        resume: go on with what the same repair has left in the output folder. Scans that are
            finished are never made again.
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
    choose_method: bool = False
    evidence: Path | None = None
    references: Sequence[CheckpointSource] = ()
    max_ap_drop: float = MAX_AP_DROP
    rounds: int = 1
    pseudo_labelled: bool = False
    resume: bool = False
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
        ValueError: bad options; see :func:`fine_tune` and :func:`load_evidence`; or the checkpoint
            could not be scanned.
    """
    _check(task, output_dir)
    source, defender, measured = task.source, task.defender, task.measured
    if task.evidence is not None:
        before = load_evidence(task.evidence, source)
    else:
        say(f"Scanning {source.name} with images of {measured.name} ...")
        before = _scan(task, source.path, output_dir / SCAN_BEFORE)
        if before["error"]:
            raise ValueError(f"what is wrong with it is not known: {before['error']}")
    options = _informed(task, before, say)
    images = _shown_first(task, ScanImages.load(measured, task.settings))
    measures_before, shown_before = _measure(task, source, images, before, "before")
    current, seconds = source, 0.0
    for number in range(1, task.rounds + 1):
        folder = _folder_of_round(task, output_dir, number)
        say(f"Fine-tuning on {defender.name} ({options.method}) ...")
        fine_tuned = fine_tune(current, defender, folder, options, task.device, say, task.resume)
        seconds += fine_tuned.seconds
        say(f"Scanning and measuring the repaired checkpoint on {measured.name} ...")
        after = _scan(task, folder, folder / SCAN_AFTER)
        (repaired,) = find_checkpoints([folder / FINAL_WEIGHTS_NAME], only_final=True)
        measures_after, shown_after = _measure(task, repaired, images, after, "after")
        obstacles = why_not_repaired(measures_before, measures_after, task.max_ap_drop)
        # Of what is clean by now no method makes more than it is.
        is_done = task.choose_method and is_found_clean(after)
        if not obstacles or is_done or number == task.rounds:
            break
        say(f"Round {number} of {task.rounds} did not repair it: {'; '.join(obstacles)}.")
        if folder == output_dir:
            folder = _put_aside(output_dir, number, after["name"])
        (current,) = find_checkpoints([folder / FINAL_WEIGHTS_NAME], only_final=True)
        options = _informed(task, after, say)
    summary = {
        "checkpoint": source.name,
        "output": str(output_dir),
        "method": options.method,
        "unchanged": options.method == KEEPING_METHOD,
        "fine_tuned": REMOVAL_REGISTRY.get(options.method).fine_tunes,
        "modules": list(fine_tuned.modules),
        "seconds": seconds,
        "rounds": number,
        "batch_size": fine_tuned.batch_size,
        "images_at_once": fine_tuned.images_at_once,
        "defender": defender.name,
        "pseudo_labelled": task.pseudo_labelled,
        "measured_on": measured.name,
        "measured_on_training_images": task.test is None,
        "before": measures_before,
        "after": measures_after,
        "max_ap_drop": task.max_ap_drop,
        "repaired": not obstacles,
        "obstacles": obstacles,
    }
    write_json(output_dir / SUMMARY_FILE, summary)
    epsilon = task.settings.observation.epsilon
    figures = draw_repair(shown_before, shown_after, _beside(task, images), epsilon)
    results = [before | {"name": SCAN_BEFORE}, after | {"name": SCAN_AFTER}]
    report = write_repair_report(output_dir / REPORT_FILE, results, summary, figures)
    return RepairedCheckpoint(fine_tuned, summary, figures, report)


def why_not_repaired(
    before: Mapping[str, Any], after: Mapping[str, Any], max_ap_drop: float
) -> list[str]:
    """Why the result of a repair is not to be called repaired; none if it is.

    Args:
        before: measures of the checkpoint, as in the summary.
        after: those of the result.
        max_ap_drop: by how much the AP on clean images may fall, 0..100.
    """
    obstacles = []
    if after["verdict"] != CLEAN:
        reason = after["reason"]
        obstacles.append(
            f"the scan calls the result {after['verdict']}" + (f" ({reason})" if reason else "")
        )
    if before["searched"] and not after["searched"]:
        # What only a search finds is not gone because a bank does not see it.
        obstacles.append(
            "the scan before has searched for triggers, that of the result has not: --search does"
        )
    was, now = before["clean"]["AP"], after["clean"]["AP"]
    if was is None or now is None:
        obstacles.append("AP on clean images could not be measured")
    elif was - now > max_ap_drop:
        obstacles.append(
            f"AP on clean images fell by {was - now:.1f}, from {was:.1f} to {now:.1f}, "
            f"more than {max_ap_drop:g}"
        )
    return obstacles


def _informed(
    task: RepairTask, evidence: Mapping[str, Any], say: Callable[[str], None]
) -> FineTuningOptions:
    """The options of the fine-tuning with what a scan knows."""
    options = informed(task.options, evidence, task.choose_method, task.settings.triggers)
    if task.choose_method:
        say(f"By what the scan has found: {describe_method(evidence, task.settings.triggers)}.")
    if task.options.modules is None and REMOVAL_REGISTRY.get(options.method).resets_modules:
        say(describe_modules(evidence) + ".")
    return options


def _folder_of_round(task: RepairTask, output_dir: Path, number: int) -> Path:
    """Where a round's result lies, or will: apart if it has been put aside before a kill."""
    aside = output_dir / ROUND.format(number)
    put_aside = number < task.rounds and (aside / RUN_FILE).is_file()
    return aside if task.resume and put_aside else output_dir


def _put_aside(output_dir: Path, number: int, scanned_as: str) -> Path:
    """Move the result of a round into a folder of its own, from which the next one starts."""
    folder = output_dir / ROUND.format(number)
    shutil.rmtree(folder / SCAN_AFTER, ignore_errors=True)
    (folder / SCAN_AFTER).mkdir(parents=True)
    shutil.copyfile(output_dir / CONFIG_NAME, folder / CONFIG_NAME)
    # Scans know a checkpoint by the name of its folder.
    shutil.move(output_dir / SCAN_AFTER / scanned_as, folder / SCAN_AFTER / folder.name)
    for name in (FINAL_WEIGHTS_NAME, RUN_FILE):
        shutil.move(output_dir / name, folder / name)
    return folder


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
    (result,) = scan(
        found,
        task.measured,
        output_dir,
        task.settings,
        task.calibration,
        task.device,
        references=task.references,
    )
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
        "reason": scanned["reason"],
        # Apart from what it found: one that was kept from it has no effect to name.
        "searched": bool(scanned.get("search")),
        "search": excess_by_effect(scanned),
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


def _shown_first(task: RepairTask, images: ScanImages) -> ScanImages:
    """The images, those first on which the trigger does most to what is repaired."""
    model, cfg = build_detector(task.source.weights, task.source.config, task.device)
    seen = load_clean_images(images.records, cfg)
    settings = task.settings.observation
    first = most_changed(model, seen, task.trigger, settings, cfg.INPUT.FORMAT, EXAMPLE_IMAGES)
    rest = [index for index in range(len(images.records)) if index not in first]
    return replace(images, records=[images.records[index] for index in (*first, *rest)])


def _examples(
    task: RepairTask, model: nn.Module, cfg: CfgNode, images: ScanImages
) -> list[tuple[Example, Example]]:
    shown = load_clean_images(images.records[:EXAMPLE_IMAGES], cfg)
    return example_pairs(model, shown, task.trigger, cfg.INPUT.FORMAT, images.class_names)


def format_repair(summary: dict[str, Any]) -> str:
    """A table of a repair: each measure before and after, and what it was measured on."""
    before, after = summary["before"], summary["after"]
    reached = before["search"], after["search"]
    rows = [
        (label, _cell(_measured(before, key), digits), _cell(_measured(after, key), digits))
        for label, key, digits in (
            ("verdict", "verdict", 0),
            ("score", "score", 3),
            ("objects found, clean images", "objects_found_clean", 3),
            ("objects found, triggered images", "objects_found_triggered", 3),
            ("attack success rate", "asr", 3),
            ("AP, clean images", "clean.AP", 1),
            ("AP, triggered images", "triggered.AP", 1),
        )
    ]
    rows += [
        (
            f"{effect} by a search, beyond clean detectors",
            *(_cell(of.get(effect), 3) for of in reached),
        )
        for effect in sorted(reached[0].keys() | reached[1].keys())
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
        if summary["pseudo_labelled"]:
            lines[-1] += "; their labels are what the checkpoint itself said of them"
    if not after["searched"]:
        lines.append("not searched for other triggers: --search does that")
    repaired = "nothing to repair: it is what it was" if summary["unchanged"] else "repaired"
    lines += [f"not repaired: {obstacle}" for obstacle in summary["obstacles"]] or [repaired]
    return "\n".join(lines)


def _measured(measures: Mapping[str, Any], key: str) -> float | str | None:
    """A measure by its dotted name."""
    head, _, rest = key.partition(".")
    return _measured(measures[head], rest) if rest else measures[head]


def _cell(value: float | str | None, digits: int) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"
