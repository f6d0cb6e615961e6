# SPDX-License-Identifier: Apache-2.0
"""What a check found, by kind, with the first ids of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from d2defense.text import shorten

from .kinds import Kind, Outcome

#: Ids that are named of each kind.
NAMED = 10
_ID_WIDTH = 60


def plain_id(value: object, position: int) -> str:
    """How a message names a record: by its id, or by its place in the list, from 1 on."""
    if type(value) is int and abs(value) < 1 << 64:
        return str(value)
    if isinstance(value, int | float | str) and value != "":
        return shorten(repr(value) if isinstance(value, str) else value, _ID_WIDTH)
    return f"no. {position + 1}"


def name_some(ids: Iterable[str], count: int) -> str:
    """The first ids of ``count``, and that there are more."""
    named = list(ids)
    return ", ".join(named) + (", ..." if count > len(named) else "")


@dataclass
class Finding:
    """All that was found of one kind.

    Attributes:
        kind: what it is.
        count: how often.
        ids: of the first :data:`NAMED` records, as text.
    """

    kind: Kind
    count: int
    ids: list[str]

    def __str__(self) -> str:
        """One line without the file's name."""
        line = f"{self.kind.what}: {self.count} ({name_some(self.ids, self.count)})"
        return f"{line}; {self.kind.then}" if self.kind.then else line


class Findings:
    """The findings of one file, in the order of :class:`Kind`."""

    def __init__(self) -> None:
        self._by_kind: dict[Kind, Finding] = {}

    def add(self, kind: Kind, record: str) -> None:
        """Note one record, by its id."""
        finding = self._by_kind.setdefault(kind, Finding(kind, 0, []))
        finding.count += 1
        if len(finding.ids) < NAMED:
            finding.ids.append(record)

    def __iter__(self) -> Iterator[Finding]:
        """The findings in the order of their kinds."""
        return (self._by_kind[kind] for kind in Kind if kind in self._by_kind)

    def of(self, outcome: Outcome) -> list[Finding]:
        """Those that have one outcome."""
        return [finding for finding in self if finding.kind.outcome is outcome]
