# SPDX-License-Identifier: Apache-2.0
"""What a scan would scan, in words."""

from __future__ import annotations

from collections.abc import Sequence

from d2defense.text import printable

from .discover import CheckpointSource


def format_sources(sources: Sequence[CheckpointSource]) -> str:
    """One line a checkpoint: name, format, weights and config, or why it cannot be scanned."""
    rows = [("name", "format", "weights", "config")]
    for source in sources:
        if source.error is not None:
            rows.append((source.name, "error", str(source.error), ""))
        else:
            rows.append((source.name, source.format, str(source.weights), str(source.config)))
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
    return "\n".join(line.rstrip() for line in lines)
