# SPDX-License-Identifier: Apache-2.0
"""What a detection method is, and what it is given."""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from torch import nn

from d2defense.detection import (
    Calibration,
    CleanImage,
    Inspection,
    ScanSettings,
    Survey,
    inspect_detector,
    survey_detector,
)

Shared = TypeVar("Shared")


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
        dataset: name of the images' dataset.
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
    dataset: str
    fingerprint: str
    seed: int
    deadline: float | None = None
    charged: float = 0.0
    _shared: dict[Hashable, tuple[Any, float]] = field(default_factory=dict, repr=False)

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

    def once(self, key: Hashable, make: Callable[[], Shared]) -> Shared:
        """What several methods make use of, made by the first; each is charged for it."""
        if key in self._shared:
            self.charged += self._shared[key][1]
        else:
            start = time.perf_counter()
            made = make()
            self._shared[key] = made, time.perf_counter() - start
        return self._shared[key][0]

    def survey(self) -> Survey:
        """The detector under the bank."""
        return self.once(
            "survey",
            lambda: survey_detector(self.model, self.images, self.settings, self.image_format),
        )

    def inspect(self) -> Inspection:
        """What the bank says of the detector."""
        return self.once(
            "inspection",
            lambda: inspect_detector(
                self.model,
                self.images,
                self.settings,
                self.calibration,
                self.image_format,
                fingerprint=self.fingerprint,
            ),
        )


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
        verdict: the method's own of three, where it has "uncertain" among them; "backdoored" is
            an alarm.
        parts: scores of parts of the method by name, for what each adds; any scale.
        details: further numbers, for the row's settings.
    """

    score: float
    interval: tuple[float, float] | None = None
    is_alarm: bool | None = None
    effect: str | None = None
    target_class: str | None = None
    verdict: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
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
