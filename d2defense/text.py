# SPDX-License-Identifier: Apache-2.0
"""Numbers and foreign strings as a report shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Shown where there is no data.
DASH = "\N{EN DASH}"
#: Seconds from which on it is said beforehand how long something will take.
WORTH_SAYING = 30
_MINUS = "\N{MINUS SIGN}"


def printable(text: object) -> str:
    r"""``text`` with every character that is not printable written as its Python escape.

    File names come from whoever made the checkpoint: terminal escape sequences, newlines,
    direction overrides and lone surrogates must neither act nor break an encoding.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def shorten(text: object, width: int) -> str:
    """:func:`printable` text of at most ``width`` characters, its middle replaced by an ellipsis.

    Both ends of a name tell checkpoints apart (folder and step), so the middle goes.
    """
    text = printable(text)
    if len(text) <= width:
        return text
    head = width // 2
    tail = width - 1 - head
    return text[:head] + "\N{HORIZONTAL ELLIPSIS}" + (text[-tail:] if tail else "")


def table_cell(text: object) -> str:
    """:func:`printable` text that no spreadsheet takes for a formula, which it would run."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """``value`` with ``digits`` decimals and a true minus sign; an en dash for no data.

    ``signed`` puts a plus before positive values, for changes.
    """
    if value is None or not math.isfinite(value):
        return DASH
    # Adding zero turns -0.0, which rounding makes of small negatives, into 0.0.
    value = round(float(value), digits) + 0.0
    text = f"{abs(value):.{digits}f}"
    if value < 0:
        return _MINUS + text
    return f"+{text}" if signed and value > 0 else text


def interval(bounds: Sequence[float] | None, digits: int = 2, signed: bool = False) -> str:
    """``[low, high]`` of a confidence interval; an en dash for no data."""
    if bounds is None:
        return DASH
    return f"[{number(bounds[0], digits, signed)}, {number(bounds[1], digits, signed)}]"


def probability(value: float | None) -> str:
    """A p-value: four decimals at most, ``< 0.0001`` below that; an en dash for no data."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 0.0001:
        return "< 0.0001"
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def file_size(size_bytes: int | None) -> str:
    """A size in decimal units (1 MB = 10^6 bytes); an en dash for no data."""
    if size_bytes is None:
        return DASH
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, else minutes and seconds; an en dash for no data."""
    if seconds is None:
        return DASH
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
