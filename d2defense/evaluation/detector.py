# SPDX-License-Identifier: Apache-2.0
"""A detector's quality on clean and on triggered images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from torch import nn
from tqdm import tqdm

from d2defense.attacks import Effect, build_effect, class_names
from d2defense.config import get_d2defense_cfg
from d2defense.statistics import ObservationSettings, why_not_taken
from d2defense.triggers import Trigger

from .conditions import CONDITIONS, build_paired_test_loader, result_name
from .paired import POISONED, build_paired_evaluator
from .probed import ProbedDetector

AP_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Loggers of what runs below.
_TALKERS = ("detectron2", "d2defense.evaluation")


def evaluate_detector(
    model: nn.Module,
    cfg: CfgNode,
    dataset_name: str,
    trigger: Trigger,
    progress: str | None = None,
    settings: ObservationSettings | None = None,
    effect: Effect | None = None,
) -> dict[str, Any]:
    """Everything that is measured of a detector on a dataset, in one pass over its images.

    Args:
        model: an instrumented detector; runs in eval mode.
        cfg: its configuration.
        dataset_name: a registered dataset whose ``json_file`` exists.
        trigger: on the triggered images, before resizing.
        progress: label of a progress bar, or None for no bar.
        settings: how proposals are reduced, and the images in one forward pass; those of ``cfg``
            if None.
        effect: says where the trigger goes and what success is; disappearance if None.

    Returns:
        ``clean`` and ``triggered``, each with six COCO metrics of boxes against the true
        annotations (0..100), ``objects_found`` (0..1), ``extra_detections`` (on no object, an
        image), and ``statistics``, each of :data:`EVALUATED_STATISTICS` by name; ``poisoned``, the
        COCO metrics of triggered images against the labels that the attacker wants; ``effect``, its
        name; ``asr``, ``tdr`` and ``retain_rate`` (:func:`attack_rates`); ``control_asr``,
        ``attack_took`` and ``reason``, without a control (:func:`judge_attack`); ``coverage``
        (:func:`attack_coverage`). None where there are no data.
    """
    effect = effect or build_effect(get_d2defense_cfg(), class_names([dataset_name]))
    settings = settings or ObservationSettings.from_config(cfg)
    with _quiet():
        loader = build_paired_test_loader(cfg, dataset_name, trigger, effect, settings.batch_size)
        evaluator = build_paired_evaluator(cfg, dataset_name, ("bbox",), settings, effect)
        with tqdm(
            total=len(loader), desc=progress, unit="batch", disable=None if progress else True
        ) as bar:
            found = inference_on_dataset(
                ProbedDetector(model), loader, evaluator, {"after_inference": bar.update}
            )
    results: dict[str, Any] = {}
    for condition in CONDITIONS:
        statistics = _numbers(found[result_name("statistics", condition)])
        results[condition] = {
            **_average_precision(found, condition),
            "objects_found": statistics["objects_found"],
            "extra_detections": statistics["extra_detections"],
            "statistics": statistics,
        }
    rates = _numbers(found["attack"])
    return {
        **results,
        POISONED: _average_precision(found, POISONED),
        "effect": effect.name,
        **rates,
        **judge_attack(rates["asr"]),
        "coverage": {name: int(count) for name, count in found["coverage"].items()},
    }


def judge_attack(asr: float | None, control_asr: float | None = None) -> dict[str, Any]:
    """Whether an attack took, as results have it.

    Args:
        asr: 0..1; None where there is none.
        control_asr: that of clean detectors under the same trigger; None without a control.

    Returns:
        ``control_asr``; ``attack_took``; ``reason``, why not in words, or None.
    """
    reason = why_not_taken(asr, control_asr)
    return {"control_asr": control_asr, "attack_took": reason is None, "reason": reason}


def _average_precision(found: Mapping[str, Mapping[str, float]], label: str) -> dict[str, Any]:
    """COCO's metrics of boxes; None where nothing is annotated."""
    metrics = _numbers(found[result_name("bbox", label)])
    return {name: metrics[name] for name in AP_METRICS}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without pycocotools' prints and the evaluators' tables: callers show their own."""
    levels = {logger: logger.level for logger in map(logging.getLogger, _TALKERS)}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """Plain floats, None for NaN."""
    return {name: None if value != value else float(value) for name, value in values.items()}
