# SPDX-License-Identifier: Apache-2.0
"""A calibration from known-clean checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from d2defense.checkpoint import file_sha256, find_checkpoints
from d2defense.data import DatasetSource
from d2defense.detection import (
    Calibration,
    Profile,
    ScanImages,
    ScanSettings,
    check_false_alarm_rate,
    open_subject,
    survey_detector,
)

logger = logging.getLogger(__name__)


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
        settings: of those scans, which do not search.
        false_alarm_rate: see :class:`Calibration`.
        name: what the checkpoints are, for reports; their number if empty.
        device: of the models; their configs' choice if None.

    Raises:
        CheckpointError: one of them cannot be used: a threshold must not rest on less than asked.
        DatasetError: the dataset cannot be used.
        CalibrationError: too few checkpoints.
    """
    check_false_alarm_rate(false_alarm_rate)
    settings = settings.without_search()
    sources = find_checkpoints(paths, only_final=True)
    images = ScanImages.load(dataset, settings)
    for line in images.warnings:
        logger.warning("%s", line)
    profiles = []
    for source in tqdm(sources, desc="calibrate", unit="model", disable=None):
        if source.error:
            raise source.error
        model, loaded, cfg = open_subject(source, images, settings, device)
        seen = survey_detector(model, loaded, settings, cfg.INPUT.FORMAT)
        profiles.append(Profile.from_survey(seen, source.name, file_sha256(source.weights)))
    return Calibration.from_profiles(
        profiles, settings, false_alarm_rate, images.name, images.fingerprint, name
    )
