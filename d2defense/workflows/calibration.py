# SPDX-License-Identifier: Apache-2.0
"""A calibration from known-clean checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from d2defense.checkpoint import CheckpointSource, file_sha256, find_checkpoints
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
from d2defense.detection.bank_race import BankRace, race_rounds
from d2defense.detection.calibration import mean_of_known

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
    errors = [source.error for source in sources if source.error]
    if errors:
        raise errors[0]
    if settings.race and race_rounds(len(settings.triggers), len(images.records)):
        profiles = _raced(sources, images, settings, device)
    else:
        profiles = []
        for source in tqdm(sources, desc="calibrate", unit="model", disable=None):
            model, loaded, cfg = open_subject(source, images, settings, device)
            seen = survey_detector(model, loaded, settings, cfg.INPUT.FORMAT)
            profiles.append(Profile.from_survey(seen, source.name, file_sha256(source.weights)))
    return Calibration.from_profiles(
        profiles, settings, false_alarm_rate, images.name, images.fingerprint, name
    )


def _raced(
    sources: Sequence[CheckpointSource],
    images: ScanImages,
    settings: ScanSettings,
    device: str | None,
) -> list[Profile]:
    """Profiles from races in which each detector is held against the others.

    The first round of all of them comes first, and each is opened again for the others: only one is
    in memory at a time.
    """
    names = [trigger.name for trigger in settings.triggers]

    def races(what: str) -> Iterator[BankRace]:
        for source in tqdm(sources, desc=what, unit="model", disable=None):
            model, loaded, cfg = open_subject(source, images, settings, device)
            yield BankRace(model, loaded, settings, cfg.INPUT.FORMAT)

    heats = [race.first_round() for race in races("calibrate, first round")]
    suspicion = np.stack([heat.suspicion for heat in heats])
    profiles = []
    for index, race in enumerate(races("calibrate, further rounds")):
        seen = race.finish(heats[index], mean_of_known(np.delete(suspicion, index, axis=0)))
        profile = Profile.from_survey(
            seen, sources[index].name, file_sha256(sources[index].weights)
        )
        first = dict(zip(names, suspicion[index].tolist(), strict=True))
        profiles.append(replace(profile, finalists=tuple(seen.triggered), first_round=first))
    return profiles
