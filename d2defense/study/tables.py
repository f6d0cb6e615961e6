# SPDX-License-Identifier: Apache-2.0
"""The tables of a study, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Spread:
    """One number measured on several detectors.

    Attributes:
        values: what was measured.
        digits: after the point, in Markdown.
    """

    values: tuple[float, ...]
    digits: int = 2

    @classmethod
    def of(cls, values: Iterable[float | None], digits: int = 2) -> Spread:
        """Of the values that there are."""
        return cls(tuple(float(value) for value in values if value is not None), digits)

    @property
    def mean(self) -> float | None:
        """None where nothing was measured."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample; None for fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if self.mean is None:
            return MISSING
        # Plus zero, so that no zero has a minus.
        text = f"{round(self.mean, self.digits) + 0.0:.{self.digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation:.{self.digits}f}"


Cell = str | Spread


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its CSV file.
        title: above it.
        headers: of the columns.
        rows: one cell a column; a :class:`Spread` is shown as mean and standard deviation.
    """

    name: str
    title: str
    headers: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """The title and a table in GitHub's Markdown."""
        cells = [[str(cell) for cell in row] for row in self.rows]
        table = tabulate(cells, self.headers, tablefmt="github", disable_numparse=True)
        return f"**{self.title}**\n\n{table}\n"

    def csv(self) -> str:
        """The same with full precision; a spread takes three columns: mean, deviation, count."""
        spread = [
            any(isinstance(row[index], Spread) for row in self.rows)
            for index in range(len(self.headers))
        ]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            name
            for header, wide in zip(self.headers, spread, strict=True)
            for name in ((header, f"{header}: sd", f"{header}: n") if wide else (header,))
        )
        for row in self.rows:
            writer.writerow(
                value
                for cell, wide in zip(row, spread, strict=True)
                for value in (_numbers(cell) if wide else (cell,))
            )
        return stream.getvalue()


def _numbers(cell: Cell) -> tuple[float | str | None, float | None, int | None]:
    if isinstance(cell, str):
        return cell, None, None
    return cell.mean, cell.deviation, len(cell.values)
