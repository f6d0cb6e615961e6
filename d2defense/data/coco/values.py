# SPDX-License-Identifier: Apache-2.0
"""What the values of a record can mean."""

from __future__ import annotations

import math
import re
from typing import Any

Id = int | str

_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,18}(\.\d{0,18})?([eE][+-]?\d{1,2})?", re.ASCII)


def plain_key(value: Any) -> Id | None:
    """An id as it is compared: a whole number (also 3.0) or text; None for anything else."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is str and value else None


def whole_number(text: str) -> int | None:
    """The whole number that a text is, None if it is none."""
    return int(text) if _WHOLE.fullmatch(text) else None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, which true and false are not."""
    return type(value) is float or type(value) is int


def as_float(value: Any) -> float | None:
    """A number, or a text that is one, as a float; None for anything else."""
    if type(value) is str and _NUMBER.fullmatch(value):
        return float(value)
    if not is_number(value):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def known_id(value: Any, ids: dict[Id, Id]) -> Id | None:
    """The id that a reference means, also where one is text and the other a number.

    Args:
        value: the reference.
        ids: by the key of a listed record, its id.
    """
    key = plain_key(value)
    if key is None:
        return None
    if key in ids:
        return ids[key]
    other = whole_number(key) if isinstance(key, str) else str(key)
    return None if other is None else ids.get(other)
