# SPDX-License-Identifier: Apache-2.0
"""What a detection method is, and what it is given."""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import nn

from d2defense.detection import Calibration, CleanImage, ScanSettings, Survey, survey_detector


class OutOfTime(RuntimeError):
    """A method's budget is spent before it could say anything."""


@dataclass
class DetectionSubject:
    """One detector before the methods that are to judge it.

    Attributes:
        model: instrumented, in eval mode, its parameters without gradient.
        images: the defender's, as the model sees them.
        class_names: of the model, each once.
        image_format: order of the channels, "BGR" or "RGB".
        open_references: opens other detectors, held to be clean, by name.
        settings: of a scan.
        calibration: of clean detectors under the bank of the settings.
        fingerprint: of the images.
        seed: of random choices.
        deadline: of :func:`time.perf_counter`, or None.
        charged: seconds of shared work that the method at work has made use of.
    """

    model: nn.Module
    images: Sequence[CleanImage]
    class_names: Sequence[str]
    image_format: str
    open_references: Callable[[], Mapping[str, nn.Module]]
    settings: ScanSettings
    calibration: Calibration
    fingerprint: str
    seed: int
    deadline: float | None = None
    charged: float = 0.0
    _surveyed: tuple[Survey, float] | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        """K; class K is background."""
        return len(self.class_names)

    @cached_property
    def references(self) -> Mapping[str, nn.Module]:
        """Other detectors of the same classes, held to be clean, by name; opened when asked for."""
        return self.open_references()

    @property
    def seconds_left(self) -> float:
        """Of the budget; infinity without one."""
        return math.inf if self.deadline is None else self.deadline - time.perf_counter()

    @property
    def is_late(self) -> bool:
        """Whether the budget is spent."""
        return self.seconds_left < 0

    def survey(self) -> Survey:
        """The detector under the bank, observed once for all methods; each is charged for it."""
        if self._surveyed is None:
            start = time.perf_counter()
            seen = survey_detector(self.model, self.images, self.settings, self.image_format)
            self._surveyed = seen, time.perf_counter() - start
        else:
            self.charged += self._surveyed[1]
        return self._surveyed[0]


@dataclass(frozen=True)
class Judgement:
    """What a method says of a detector.

    Attributes:
        score: the larger, the more likely there is a backdoor; any scale.
        interval: of the score, if the method has one.
        is_alarm: whether it says that there is one, by its own published or shipped threshold; None
            if it has none.
        effect: what the backdoor does, if the method says so.
        target_class: name of the class that it turns objects into, if the method says so.
        details: further numbers, for the row's settings.
    """

    score: float
    interval: tuple[float, float] | None = None
    is_alarm: bool | None = None
    effect: str | None = None
    target_class: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class DetectionMethod(ABC):
    """A way to tell backdoored detectors from clean ones, by its name in the registry.

    The first line of a method's docstring is its line in tables; the rest names its source and says
    what had to be decided to size it to detectors.
    """

    #: What it is given that others do without, in words; "" for images with true boxes alone.
    needs: ClassVar[str] = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What a row repeats: the public attributes of the class, inherited ones as well."""
        return {
            key: value
            for key, value in inspect.getmembers_static(type(self))
            if not key.startswith("_") and isinstance(value, (int, float, str, tuple))
            if key != "needs"
        }

    @abstractmethod
    def judge(self, subject: DetectionSubject) -> Judgement:
        """Judge a detector.

        Raises:
            OutOfTime: the subject's deadline has passed before there was anything to say.
        """
