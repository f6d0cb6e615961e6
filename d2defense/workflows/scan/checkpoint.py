# SPDX-License-Identifier: Apache-2.0
"""The scan of one checkpoint, from its files to its result and figures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from d2defense.checkpoint import CheckpointError, nonfinite_tensors
from d2defense.data import DatasetError
from d2defense.detection import (
    CleanImage,
    Inspection,
    Subject,
    class_indices,
    inspect_detector,
    load_clean_images,
    open_subject,
)
from d2defense.detection.by_class import rare_classes
from d2defense.detection.matching import (
    match_classes,
    matched_in_words,
    unmatched_in_words,
)
from d2defense.detection.search import names_of_classes, with_search
from d2defense.detection.survey import Progress
from d2defense.detection.verdict import BACKDOORED, CLEAN, UNCERTAIN
from d2defense.environment import library_versions
from d2defense.memory import is_out_of_memory
from d2defense.modeling import number_of_classes
from d2defense.report.figures import draw_examples, draw_histograms
from d2defense.report.results import (
    EXAMPLES_FILE,
    HISTOGRAM_FILE,
    empty_result,
    error_result,
    validate_result,
)
from d2defense.text import shorten

from ..examples import example_pairs, most_changed
from .searching import search_checkpoint
from .task import ScanTask

EXAMPLE_IMAGES = 3
_NOT_HELD = (
    "the bank was not tried on the references: it would take longer than the time limit "
    "(--time-limit)"
)
# Of the progress, the part of the bank where there is a search, too.
_BANK_SHARE = 0.2


@dataclass(frozen=True)
class Scanned:
    """What the scan of one checkpoint yields.

    Attributes:
        result: as docs/result-format.md describes it; what is known of the files, the key of the
            scan and the isolation are filled in by the caller.
        figures: PNG files by name.
        twin: safetensors file of the twin's weights; empty without one.
    """

    result: dict[str, Any]
    figures: dict[str, bytes] = field(default_factory=dict)
    twin: bytes = b""


def run_task(task: ScanTask, progress: Progress | None = None) -> Scanned:
    """Scan one checkpoint, whatever becomes of it: what goes wrong is an error result.

    Args:
        task: what to scan.
        progress: told after every forward pass how much is done, 0..1.
    """
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    try:
        scanned = scan_checkpoint(task, progress)
        validate_result(scanned.result)
        return scanned
    except (CheckpointError, DatasetError) as error:
        reason = str(error)
    except Exception as error:  # an attacker's model can fail in any way; the scan must go on
        words = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            reason = f"{task.path}: needs more memory than there is: {words}"
        else:
            reason = f"{task.path}: the scan failed: {words}"
    return Scanned(error_result(task.name, reason, str(task.weights)))


def scan_checkpoint(task: ScanTask, progress: Progress | None = None) -> Scanned:
    """Scan one checkpoint; arguments as :func:`run_task`.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    start = time.perf_counter()
    settings, dataset = task.settings, task.images
    model, images, cfg = open_subject(task, dataset, settings, task.device)
    notes = []
    num_classes = number_of_classes(cfg)
    matched = None
    if settings.class_map is None:
        matched = match_classes(model, dataset.records, images, dataset.class_names, num_classes)
    if matched is not None:
        settings = replace(settings, class_map=matched)
        task = replace(task, settings=settings)
        indices = class_indices(dataset.class_names, num_classes, matched)
        images = load_clean_images(dataset.records, cfg, indices)
        notes.append(matched_in_words(matched))
    progress = progress or (lambda share: None)
    share = _BANK_SHARE if settings.search.is_on else 1.0
    inspection = inspect_detector(
        model,
        images,
        settings,
        task.calibration,
        cfg.INPUT.FORMAT,
        progress=lambda done: progress(share * done),
        fingerprint=dataset.fingerprint,
        class_names=names_of_classes(num_classes, dataset.class_names),
    )
    scanned = time.perf_counter() - start
    figures = _draw(task, model, cfg, images, inspection) if task.figures else {}
    passes = inspection.num_passes
    verdict = inspection.verdict
    searched, twin, has_found = None, b"", False
    if settings.search.is_on and (settings.search.always or verdict.label != BACKDOORED):
        found = search_checkpoint(
            task,
            Subject(model, images, cfg),
            lambda done: progress(share + (1 - share) * done),
            _seconds_left(task, start),
        )
        # What was done so far must not be lost to it; a reference takes what the suspect took.
        if scanned * len(found.references) < _seconds_left(task, start):
            inspection = inspection.against(found.references, images, settings, cfg.INPUT.FORMAT)
        elif inspection.doubt is not None:
            notes.append(_NOT_HELD)
        verdict = inspection.with_proviso(with_search(inspection.verdict, found.outcome))
        searched, figures, twin = found.fields, figures | found.figures, found.twin
        has_found = found.outcome.has_found
    if verdict.label == CLEAN and matched is not None:
        reason = unmatched_in_words(matched, dataset.class_names, dataset.records)
        verdict = replace(verdict, label=UNCERTAIN, reason=reason) if reason else verdict
    if verdict.label == CLEAN:
        rare = rare_classes(images, names_of_classes(num_classes, dataset.class_names))
        verdict = replace(verdict, reason="; ".join(filter(None, (verdict.reason, rare))))
    # Of what the verdict rests on.
    victim_class, modules = inspection.victim_class, inspection.dominant_modules
    if has_found:
        victim_class = found.fields["arms"][0]["victim_class"]
        modules = list(found.outcome.dominant_modules)
    progress(1.0)
    result = empty_result(task.name, str(task.weights)) | {
        "architecture": _architecture(model, cfg),
        "dataset": {
            "name": dataset.name,
            "num_images": len(images),
            "num_objects": images.num_objects,
            "fingerprint": dataset.fingerprint,
        },
        "settings": settings.as_dict(),
        "verdict": verdict.label,
        "reason": verdict.reason,
        "score": verdict.score,
        "score_interval": list(verdict.interval),
        "threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "calibration": task.calibration.describe(dataset.name, dataset.fingerprint),
        "worst_trigger": inspection.worst_trigger,
        "victim_class": victim_class,
        "dominant_modules": modules,
        **inspection.fields,
        "bank": {
            "verdict": inspection.verdict.label,
            "score": inspection.verdict.score,
            "threshold": inspection.verdict.threshold,
            "references": list(inspection.held_against),
        },
        "search": searched,
        "timing": {
            "seconds": time.perf_counter() - start,
            "images_per_second": passes / scanned,
            "batch_size": inspection.batch_size,
        },
        "warnings": notes + _warnings(model),
        "environment": library_versions() | {"device": str(model.device), "isolation": None},
    }
    return Scanned(result, figures, twin)


def _seconds_left(task: ScanTask, start: float) -> float:
    """What is left of the time limit of a scan that began at ``start``."""
    if task.time_limit is None:
        return math.inf
    return task.time_limit - task.spent_seconds - (time.perf_counter() - start)


def _warnings(model: nn.Module) -> list[str]:
    """What is odd about a checkpoint and does not keep it from being scanned."""
    names = nonfinite_tensors(model.state_dict())
    if not names:
        return []
    noun = "tensor holds" if len(names) == 1 else "tensors hold"
    return [f"{len(names)} {noun} NaN or infinity, first {shorten(names[0], 120)}"]


def _draw(
    task: ScanTask, model: nn.Module, cfg: CfgNode, images: list[CleanImage], inspection: Inspection
) -> dict[str, bytes]:
    trigger = next(t for t in task.settings.triggers if t.name == inspection.worst_trigger)
    settings, image_format = task.settings.observation, cfg.INPUT.FORMAT
    shown = most_changed(model, images, trigger, settings, image_format, EXAMPLE_IMAGES)
    chosen = [images[index] for index in shown]
    pairs = example_pairs(model, chosen, trigger, image_format, task.images.class_names)
    figures = {EXAMPLES_FILE: draw_examples(pairs, f"{task.name}: {trigger.name} patch")}
    histogram = inspection.fields["histogram"]
    if histogram is not None:
        figures[HISTOGRAM_FILE] = draw_histograms(
            histogram["edges"],
            {"clean images": histogram["clean"], f"{trigger.name} patch": histogram["triggered"]},
            f"{task.name}: inconsistency of the proposals",
            task.settings.observation.epsilon,
        )
    return figures


def _architecture(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    proposing, classifying = model.parts(cfg)
    return {
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "proposal_generator": proposing,
        "roi_heads": classifying,
        "num_classes": number_of_classes(cfg),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
