# SPDX-License-Identifier: Apache-2.0
"""A calibration from known-clean checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from d2defense.checkpoint import build_detector, file_sha256, find_checkpoints
from d2defense.data import DatasetSource
from d2defense.detection import (
    Calibration,
    ScanSettings,
    check_false_alarm_rate,
    class_indices,
    load_clean_images,
    profile_detector,
)

from .scan import ScanImages


def calibrate(
    paths: Iterable[str | Path],
    dataset: DatasetSource,
    settings: ScanSettings,
    false_alarm_rate: float,
    name: str = "",
    device: str | None = None,
) -> Calibration:
    """Profile every clean checkpoint below ``paths``.

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
    check_false_alarm_rate(false_alarm_rate)
    sources = find_checkpoints(paths)
    images = ScanImages.load(dataset, settings)
    profiles = []
    for source in tqdm(sources, desc="calibrate", unit="model", disable=None):
        if source.error:
            raise source.error
        model, cfg = build_detector(source.weights, source.config, device)
        classes = class_indices(
            images.class_names, cfg.MODEL.ROI_HEADS.NUM_CLASSES, settings.class_map
        )
        loaded = load_clean_images(images.records, cfg, classes)
        sha256 = file_sha256(source.weights)
        profiles.append(
            profile_detector(source.name, sha256, model, loaded, settings, cfg.INPUT.FORMAT)
        )
    return Calibration.from_profiles(
        profiles, settings, false_alarm_rate, images.name, images.fingerprint, name
    )
