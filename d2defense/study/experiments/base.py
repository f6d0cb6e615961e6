# SPDX-License-Identifier: Apache-2.0
"""What an experiment is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Plan
from ..steps import Step, StepResults
from ..tables import Table


@dataclass(frozen=True)
class Bar:
    """Something that a result is held to.

    Attributes:
        what: in words.
        wanted: in words.
        measured: in words.
        met: None where it was not measured.
    """

    what: str
    wanted: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Section:
    """What an experiment found.

    Attributes:
        title: its headline.
        text: what was done, in a paragraph.
        tables: in order.
        figures: PNG files by name without its end.
        bars: that it is held to.
        failed_attacks: names of detectors whose attack did not take.
    """

    title: str
    text: str
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    failed_attacks: tuple[str, ...] = ()


class Experiment(ABC):
    """One table or figure: the steps that it needs, and what it makes of their results.

    Attributes:
        title: its headline.
        place: in a report that has all of them: smaller ones come first.
    """

    title: ClassVar[str]
    place: ClassVar[int] = 100

    @abstractmethod
    def steps(self, plan: Plan) -> list[Step]:
        """The steps whose results it reads; empty where the profile has nothing for it."""

    @abstractmethod
    def report(self, plan: Plan, results: StepResults) -> Section:
        """Tables and figures from what results there are."""


def experiments_in_order() -> list[str]:
    """Names of all experiments, as a report has them one after another."""
    places = {name: kind.place for name, kind in EXPERIMENT_REGISTRY}
    return sorted(places, key=places.__getitem__)


def statistic(evaluation: Mapping[str, Any] | None, condition: str, name: str) -> float | None:
    """A statistic of an evaluation; None where there is none."""
    return evaluation and evaluation[condition]["statistics"][name]
