# SPDX-License-Identifier: Apache-2.0
"""What a scan would scan, in words."""

from __future__ import annotations

from collections.abc import Sequence

from d2defense.text import printable

from .source import CheckpointSource, LeftOut


def format_sources(sources: Sequence[CheckpointSource], left_out: Sequence[LeftOut] = ()) -> str:
    """One line a checkpoint: name, format, weights and config, or why it cannot be scanned.

    Below them, files of the same bytes and what is left out.
    """
    rows = [("name", "format", "weights", "config")]
    for source in sources:
        if source.error is not None:
            rows.append((source.name, "error", str(source.error), ""))
        else:
            weights = str(source.weights) + (f": {source.member}" if source.member else "")
            rows.append((source.name, source.format, weights, str(source.config)))
    rows = [tuple(printable(cell) for cell in row) for row in rows]
    # An error's line is as long as it must be; it would only push the configs out of sight.
    fitting = [row for row in rows if row[1] != "error"]
    widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)]
    widths.append(max(len(row[2]) for row in fitting))
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + f"  {row[3]}"
        for row in rows
    ]
    text = "\n".join(line.rstrip() for line in lines)
    notes = [f"the same as {source.name}: {copy}" for source in sources for copy in source.copies]
    notes += format_left_out(left_out)
    return "\n".join([text, *(["", *map(printable, notes)] if notes else [])])


def format_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """One line each."""
    return [printable(f"left out: {path}: {reason}") for path, reason in left_out]
