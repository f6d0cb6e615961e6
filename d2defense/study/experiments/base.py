# SPDX-License-Identifier: Apache-2.0
"""What an experiment is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Plan
from ..rows import StudyRows
from ..steps import Step
from ..tables import Spread, Table


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

    @classmethod
    def at_least(cls, what: str, least: float, value: float | None, text: str = "") -> Bar:
        """A number that is to reach another; ``text`` shows it, three digits if empty."""
        shown = "not measured" if value is None else text or f"{value:.3f}"
        return cls(what, f"at least {least}", shown, None if value is None else value >= least)

    @classmethod
    def at_most(cls, what: str, most: float, spread: Spread) -> Bar:
        """A mean that is not to exceed a number."""
        value = spread.mean
        return cls(what, f"at most {most}", str(spread), None if value is None else value <= most)


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
    """One table or figure: the steps that it needs, and what it makes of their rows.

    Attributes:
        title: its headline.
        place: in a report that has all of them: smaller ones come first.
    """

    title: ClassVar[str]
    place: ClassVar[int] = 100

    @abstractmethod
    def steps(self, plan: Plan) -> list[Step]:
        """The steps whose rows it reads; empty where the profile has nothing for it."""

    @abstractmethod
    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """Tables and figures from what rows there are."""


class Column(NamedTuple):
    """A column of a table: its head, the metric of the rows, and digits after the point."""

    head: str
    metric: str
    digits: int = 2


class Line(NamedTuple):
    """A line of a table: its names, and the steps whose rows each cell is the mean of.

    ``part`` is that of all metrics, such as "clean" or "triggered"; "" where columns name it.
    """

    names: Sequence[str]
    steps: Iterable[Step]
    part: str = ""


def pivot(
    name: str,
    title: str,
    heads: Sequence[str],
    columns: Sequence[Column],
    lines: Iterable[Line],
    rows: StudyRows,
) -> Table:
    """A table of rows: groups of steps down, metrics across, mean and deviation in each cell.

    Args:
        name: of the CSV file.
        title: above it.
        heads: of the names of the lines.
        columns: after these.
        lines: in order.
        rows: of the study.
    """
    cells = []
    for line in lines:
        steps, end = list(line.steps), line.part and f":{line.part}"
        cells.append(
            [*line.names, *(spread(rows, steps, c.metric + end, c.digits) for c in columns)]
        )
    return Table(name, title, (*heads, *(column.head for column in columns)), cells)


def spread(rows: StudyRows, steps: Iterable[Step], metric: str, digits: int = 2) -> Spread:
    """A metric over some steps."""
    return Spread.of((rows.value(step, metric) for step in steps), digits)


def failed_attacks(rows: StudyRows, measured: Iterable[Step]) -> tuple[str, ...]:
    """Names of the detectors whose attack did not take."""
    found = filter(None, map(rows.row, measured))
    return tuple(row.detector for row in found if row.took is False)


def experiments_in_order() -> list[str]:
    """Names of all experiments, as a report has them one after another."""
    places = {name: kind.place for name, kind in EXPERIMENT_REGISTRY}
    return sorted(places, key=places.__getitem__)
