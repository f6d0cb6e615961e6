# SPDX-License-Identifier: Apache-2.0
"""A detector's quality on clean and on triggered images, against the true annotations."""

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

from d2defense.attacks import Trigger
from d2defense.statistics import ObservationSettings, attack_succeeded

from .conditions import CONDITIONS, build_paired_test_loader, result_name
from .evaluators import build_paired_evaluator
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
) -> dict[str, Any]:
    """Everything that is measured of a detector on a dataset, in one pass over its images.

    Args:
        model: an instrumented detector; runs in eval mode.
        cfg: its configuration.
        dataset_name: a registered dataset whose ``json_file`` exists.
        trigger: stamped on every object of the triggered images, before resizing.
        progress: label of a progress bar, or None for no bar.
        settings: how proposals are reduced, and the images in one forward pass; those of ``cfg``
            if None.

    Returns:
        ``{"clean": {...}, "triggered": {...}, "asr": share, "attack_succeeded": bool}``: for both
        kinds of images six COCO metrics of boxes (0..100, None where no such object exists),
        ``objects_found`` (0..1), and ``statistics``, each of :data:`EVALUATED_STATISTICS` by name,
        None for no data. The last two are None where nothing is found without the trigger.
    """
    settings = settings or ObservationSettings.from_config(cfg)
    with _quiet():
        loader = build_paired_test_loader(cfg, dataset_name, trigger, settings.batch_size)
        evaluator = build_paired_evaluator(cfg, dataset_name, ("bbox",), settings)
        with tqdm(
            total=len(loader), desc=progress, unit="batch", disable=None if progress else True
        ) as bar:
            found = inference_on_dataset(
                ProbedDetector(model), loader, evaluator, {"after_inference": bar.update}
            )
    results: dict[str, Any] = {}
    for condition in CONDITIONS:
        metrics = _numbers(found[result_name("bbox", condition)])
        statistics = _numbers(found[result_name("statistics", condition)])
        results[condition] = {
            **{name: metrics[name] for name in AP_METRICS},
            "objects_found": statistics["objects_found"],
            "statistics": statistics,
        }
    asr = _numbers(found["attack"])["asr"]
    return {**results, "asr": asr, "attack_succeeded": attack_succeeded(asr)}


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
