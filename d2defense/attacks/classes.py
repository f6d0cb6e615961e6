# SPDX-License-Identifier: Apache-2.0
"""Classes as a configuration names them."""

from __future__ import annotations

from collections.abc import Sequence


def class_index(value: str | int, names: Sequence[str], key: str) -> int | None:
    """The contiguous index of a class.

    Args:
        value: a class's name, or its index as a number or its digits; "" for none.
        names: of the dataset's classes in order; () where they have no names.
        key: of the configuration, for the message.

    Raises:
        ValueError: no class of the dataset.
    """
    if value == "":
        return None
    if value in names:
        return list(names).index(value)
    if str(value).isdecimal() and (not names or int(value) < len(names)):
        return int(value)
    known = ", ".join(names) or "numbers from 0 on"
    raise ValueError(f"{key} is {value!r}, no class of the dataset: {known}")
