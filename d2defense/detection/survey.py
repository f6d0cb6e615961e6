# SPDX-License-Identifier: Apache-2.0
"""A detector on all images, without a trigger and under each trigger of the bank."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from d2defense.files import json_number
from d2defense.modeling import BatchSize
from d2defense.statistics import DEPLOYED_STATISTICS, STATISTICS, Observation
from d2defense.text import WORTH_SAYING, duration

from .by_class import CLASS_FALLS
from .images import CleanImage
from .observing import observe_batches
from .scale import DeployedScale
from .score import statistic
from .settings import ScanSettings

logger = logging.getLogger(__name__)

#: What is kept of a detector under a trigger.
KEPT = (*STATISTICS, *DEPLOYED_STATISTICS, *CLASS_FALLS)
#: Told the share of the work that is done, 0..1.
Progress = Callable[[float], None]
#: Asked after every batch, with its observation without and with each trigger, whether to end.
Watch = Callable[[Observation, Sequence[Observation]], bool]


class Dropped(NamedTuple):
    """A trigger that a race ended for before it was on all images."""

    num_images: int
    """That it was seen on."""
    score: float
    """What it would give on these, beyond what clean detectors show on theirs."""
    change: np.ndarray
    """(K,): of each of :data:`KEPT`, on these images, from the images as they are; NaN for no data.
    """


class Survey(NamedTuple):
    """What was observed of a detector on the same images."""

    clean: Observation
    """On the images as they are."""
    triggered: dict[str, Observation]
    """Under each trigger, by name."""
    batch_size: int = 0
    """The most images that went through the network at a time."""
    obstacle: str | None = None
    """Why its scores cannot be put on the scale that all detectors share; None if they can."""
    operating_point: float | None = None
    """The score from which on its detections count, 0..1; None where there is an obstacle."""
    dropped: Mapping[str, Dropped] = MappingProxyType({})
    """Triggers of the bank that are not among them, by name: a race dropped them."""

    @property
    def num_images(self) -> int:
        """How many images were observed."""
        return self.clean.num_images


@dataclass(frozen=True)
class Profile:
    """The statistics of one detector over a set of images: what is kept of a survey.

    Results, calibrations and studies read their numbers from it.

    Attributes:
        name: of the detector; "" where the reader knows it.
        sha256: of its weights file; "" if unknown.
        clean: number by name of the statistic, on the images as they are; NaN for no data.
        triggered: the same under each trigger, by name of the trigger. Under one that a race has
            dropped, they are moved from those of all images as on the images that it was seen on.
        finalists: triggers that a race has left; None where all were on all images.
        first_round: suspicion of each statistic of the decision in the first round of that race, by
            name of the trigger; None likewise.
    """

    name: str
    sha256: str
    clean: dict[str, float]
    triggered: dict[str, dict[str, float]]
    finalists: tuple[str, ...] | None = None
    first_round: dict[str, list[float]] | None = None

    @classmethod
    def from_survey(cls, survey: Survey, name: str = "", sha256: str = "") -> Profile:
        """The statistics over all images of a survey."""

        def numbers(seen: Observation) -> dict[str, float]:
            return {key: float(statistic(survey.clean, seen, key)) for key in KEPT}

        clean = numbers(survey.clean)
        under = {trigger: numbers(seen) for trigger, seen in survey.triggered.items()}
        for trigger, each in survey.dropped.items():
            # A fall of one class is counted from 0 on, whether the images show enough of a class.
            under[trigger] = {
                key: float(change if key in CLASS_FALLS else clean[key] + change)
                for key, change in zip(KEPT, each.change, strict=True)
            }
        return cls(name, sha256, clean, under)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Profile:
        """The profile that :meth:`as_dict` made a dictionary of.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """

        def numbers(values: dict[str, Any]) -> dict[str, float]:
            return {
                name: math.nan if values[name] is None else float(values[name]) for name in KEPT
            }

        finalists, first_round = content.get("finalists"), content.get("first_round")
        return cls(
            str(content["name"]),
            str(content["sha256"]),
            numbers(content["clean"]),
            {str(name): numbers(values) for name, values in content["triggered"].items()},
            None if finalists is None else tuple(map(str, finalists)),
            None
            if first_round is None
            else {
                str(name): [math.nan if value is None else float(value) for value in values]
                for name, values in first_round.items()
            },
        )

    def as_dict(self) -> dict[str, Any]:
        """The profile for a JSON file; None for no data."""

        def numbers(values: dict[str, float]) -> dict[str, float | None]:
            return {name: json_number(value) for name, value in values.items()}

        content = {
            "name": self.name,
            "sha256": self.sha256,
            "clean": numbers(self.clean),
            "triggered": {name: numbers(values) for name, values in self.triggered.items()},
        }
        if self.finalists is None or self.first_round is None:
            return content
        first = {name: list(map(json_number, values)) for name, values in self.first_round.items()}
        return content | {"finalists": list(self.finalists), "first_round": first}

    def arrays(
        self, triggers: Sequence[str], statistics: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The clean numbers, of shape (S,), and those under the triggers, of shape (T, S).

        Raises:
            KeyError: a trigger that the profile lacks.
        """
        clean = np.array([self.clean[name] for name in statistics])
        under = [[self.triggered[t][name] for name in statistics] for t in triggers]
        return clean, np.array(under)


def survey_detector(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
    progress: Progress | None = None,
    order: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Survey:
    """Observe a detector under every trigger.

    Images are gone through once, batch by batch; only sums of them are kept.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images.
        settings: of the scan.
        image_format: channel order of the images, "BGR" or "RGB".
        progress: told after every forward pass how much is done.
        order: in which to take the images; by their shapes if None.
        watch: ends the survey after a batch by returning True.
    """
    obstacle = point = None
    try:
        scale = DeployedScale.of(model, images)
        point = scale.point
    except ValueError as error:
        scale, obstacle = DeployedScale.unknown(), str(error)
    triggers = (None, *settings.triggers)
    work = _Work(len(images) * len(triggers), progress)
    batch_size = BatchSize(model, settings.observation.batch_size)
    parts: list[list[Observation]] = []
    for batch in observe_batches(
        model,
        images,
        triggers,
        settings.observation,
        image_format,
        order,
        work.add,
        batch_size,
        scale,
    ):
        parts.append(batch.observations)
        if watch is not None and watch(batch.observations[0], batch.observations[1:]):
            break
    work.end()
    clean, *triggered = (Observation.join(column) for column in zip(*parts, strict=True))
    names = (trigger.name for trigger in settings.triggers)
    return Survey(clean, dict(zip(names, triggered, strict=True)), batch_size.used, obstacle, point)


class _Work:
    """How much of a survey is done, and how long the rest will take.

    Args:
        total: images times passes.
        progress: gets the share that is done.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress or (lambda share: None)
        self._done = 0
        # When the first pass was over, which warms up, and how many images it was of.
        self._warm: tuple[float, int] | None = None
        self._has_told = False

    def add(self, num_images: int) -> None:
        """One forward pass over so many images is done."""
        self._done = min(self._total, self._done + num_images)
        if self._warm is None:
            self._warm = time.monotonic(), self._done
        elif not self._has_told:
            self._has_told = True
            self._announce(*self._warm)
        self._progress(self._done / self._total)

    def end(self) -> None:
        """There is nothing more to do."""
        self._progress(1.0)

    def _announce(self, start: float, before: int) -> None:
        each = (time.monotonic() - start) / max(1, self._done - before)
        seconds = each * self._total
        if seconds >= WORTH_SAYING:
            logger.info(
                "%d images to look at, %.2g s each: about %s in all",
                self._total,
                each,
                duration(seconds),
            )
