# SPDX-License-Identifier: Apache-2.0
"""What a task is: how the methods of a registry are run on one detector, and what is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from d2defense.checkpoint import CheckpointSource
from d2defense.data import DatasetSource
from d2defense.detection import ScanImages
from d2defense.registry import Registry

from ..zoo.index import ZooDetector


@dataclass(frozen=True)
class TaskOptions:
    """How every method of a run is run.

    Attributes:
        images: of the defender, the same for all.
        defender: the dataset that they are of.
        test: clean images that success is measured on; no method sees them.
        references: detectors that are held to be clean.
        budget: seconds that a method may take for a detector; None for as many as it needs.
        seed: of all random choices.
        device: of the models.
        work: folder for what a method writes.
        has_labels: whether a repair may use the labels of the defender's images.
        overrides: KEY VALUE pairs of a removal method's configuration.
        test_images: the first so many of ``test``; 0 for all.
        later_steps: of plain training after a repair, before it is measured once more.
        further: images of that training.
    """

    images: ScanImages
    defender: DatasetSource
    test: DatasetSource
    references: tuple[CheckpointSource, ...]
    budget: float | None
    seed: int
    device: str
    work: Path
    has_labels: bool = True
    overrides: tuple[str, ...] = ()
    test_images: int = 0
    later_steps: int = 0
    further: DatasetSource | None = None


class Measurement(NamedTuple):
    """One number of one method."""

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """What a method yields on one detector.

    Attributes:
        measurements: one each metric.
        settings: of the method.
        needs: what it was given that others do without, in words.
        seconds: that it took; None for the wall clock's.
    """

    measurements: Sequence[Measurement]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    seconds: float | None = None


class Task(ABC):
    """A question that methods are compared on, by the name that ``--task`` gives.

    Attributes:
        methods: the registry of its methods.
        ranked_by: metrics whose larger values mean a backdoor, for AUC and the like.
        usual_images: how many of the defender's images methods are given unless told otherwise; 0
            for all.
    """

    methods: ClassVar[Registry]
    ranked_by: ClassVar[tuple[str, ...]] = ()
    usual_images: ClassVar[int] = 100

    def applies(self, detector: ZooDetector) -> bool:
        """Whether the task has a sense on a detector: on all by default."""
        return True

    def conditions(self, options: TaskOptions) -> Mapping[str, Any]:
        """Options, beside those that every row has, on which the task's measurements depend."""
        return {}

    def begin(self, detector: ZooDetector, source: CheckpointSource, options: TaskOptions) -> Any:
        """What the methods of one detector share, such as its model."""
        return None

    @abstractmethod
    def measure(
        self,
        method: str,
        detector: ZooDetector,
        source: CheckpointSource,
        options: TaskOptions,
        shared: Any,
    ) -> TaskResult:
        """Run one method on one detector; an exception becomes a row with its reason.

        Args:
            method: name in :attr:`methods`.
            detector: of a zoo.
            source: its files.
            options: of the run.
            shared: what :meth:`begin` made.
        """
