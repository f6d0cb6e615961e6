# SPDX-License-Identifier: Apache-2.0
"""A calibration from known-clean checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from d2defense.checkpoint import build_detector, find_checkpoints
from d2defense.data import DatasetSource
from d2defense.detection import (
    Calibration,
    ScanSettings,
    class_indices,
    load_clean_images,
    score_detector,
)
from d2defense.detection.score import SCORE_STATISTIC

from .scan import ScanImages


def calibrate(
    paths: Iterable[str | Path],
    dataset: DatasetSource,
    settings: ScanSettings,
    false_alarm_rate: float,
    name: str = "",
    device: str | None = None,
) -> Calibration:
    """Score every clean checkpoint below ``paths``.

    Args:
        paths: known-clean checkpoints or folders of them.
        dataset: the images that later scans use.
        settings: of those scans.
        false_alarm_rate: see :class:`Calibration`.
        name: what the checkpoints are, for reports; their number if empty.
        device: of the models; their configs' choice if None.

    Raises:
        CheckpointError: one of them cannot be used: a threshold must not rest on less than asked.
        DatasetError: the dataset cannot be used.
        CalibrationError: too few checkpoints.
    """
    sources = find_checkpoints(paths)
    images = ScanImages.load(dataset, settings)
    scores = []
    for source in tqdm(sources, desc="calibrate", unit="model", disable=None):
        if source.error:
            raise source.error
        model, cfg = build_detector(source.weights, source.config, device)
        classes = class_indices(
            images.class_names, cfg.MODEL.ROI_HEADS.NUM_CLASSES, settings.class_map
        )
        loaded = load_clean_images(images.records, cfg, classes)
        scores.append(score_detector(model, loaded, settings, cfg.INPUT.FORMAT))
    return Calibration(
        name=name or f"{len(sources)} checkpoints",
        dataset=dataset.name,
        triggers=tuple(trigger.name for trigger in settings.triggers),
        statistic=SCORE_STATISTIC,
        false_alarm_rate=false_alarm_rate,
        clean_scores=tuple(scores),
    )
