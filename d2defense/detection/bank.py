# SPDX-License-Identifier: Apache-2.0
"""Trigger banks: the triggers that a scan tries, read from YAML (docs/triggers.md)."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2defense.config import find_config
from d2defense.registry import TRIGGER_REGISTRY
from d2defense.triggers import Trigger

from .bank_format import DEFAULT_FAMILY, BankChecker

DEFAULT_BANK = "plain"
MAX_TRIGGERS = 4096
_MAX_BYTES = 1 << 20
_FIELD = re.compile(r"\{(\w+)\}")


class TriggerBankError(ValueError):
    """A trigger bank cannot be used; the message names the file, the entry and the reason."""


def load_bank(source: str | Path = DEFAULT_BANK) -> tuple[Trigger, ...]:
    """Read the triggers of a bank, grids expanded, in the order of the file.

    Args:
        source: a YAML file, or the name of one below ``configs/triggers``.

    Raises:
        TriggerBankError: the file cannot be read, or an entry of it cannot be used.
    """
    try:
        path = find_config("triggers", source)
    except ValueError as error:
        raise TriggerBankError(f"no trigger bank {error}") from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TriggerBankError(f"{path}: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise TriggerBankError(f"{path}: larger than {_MAX_BYTES} bytes")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise TriggerBankError(f"{path}: not a plain YAML file: {reason}") from None
    checker = BankChecker()
    try:
        checker.check_file(document)
    except ValueError as error:
        raise TriggerBankError(f"{path}: {error}") from None
    bank: dict[str, Trigger] = {}
    for number, entry in enumerate(document["triggers"], 1):
        try:
            for values in _expand(entry):
                checker.check_trigger(values)
                family = TRIGGER_REGISTRY.get(values.pop("family"))
                trigger = family.from_entry(values, path.parent)
                if trigger.name in bank:
                    raise ValueError(f"name {trigger.name!r} is used before")
                bank[trigger.name] = trigger
                if len(bank) > MAX_TRIGGERS:
                    raise ValueError(f"more than {MAX_TRIGGERS} triggers")
        except (ValueError, OverflowError) as error:
            raise TriggerBankError(f"{path}: entry {number}: {error}") from None
    return tuple(bank.values())


@functools.cache
def default_bank() -> tuple[Trigger, ...]:
    """The bank of a scan that names no other: ``configs/triggers/plain.yaml``."""
    return load_bank()


def select_triggers(
    names: Sequence[str] = (), bank: Sequence[Trigger] | None = None
) -> tuple[Trigger, ...]:
    """The triggers of a bank (the default one if None) with these names; all for no names.

    Raises:
        ValueError: a name that the bank does not have, or one twice.
    """
    bank = default_bank() if bank is None else tuple(bank)
    by_name = {trigger.name: trigger for trigger in bank}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        known = [*by_name][:20] + (["..."] if len(by_name) > 20 else [])
        raise ValueError(f"no trigger {', '.join(unknown)} in the bank; it has {', '.join(known)}")
    if len(set(names)) != len(names):
        raise ValueError("a trigger is named twice")
    return tuple(by_name[name] for name in names) if names else bank


def _expand(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entry, once for every combination of its grid's values, each with a family."""
    name = entry["name"]
    axes = _axes(entry)
    unknown = [key for key in _FIELD.findall(name) if key not in axes]
    if unknown:
        raise ValueError(f"name {name!r}: the grid has no {', '.join(unknown)}")
    fixed = {key: value for key, value in entry.items() if key != "grid"}
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, (label for label, _ in combination), strict=True))
        values = dict(zip(axes, (value for _, value in combination), strict=True))
        values |= fixed | {"name": _FIELD.sub(lambda field: labels[field[1]], name)}  # noqa: B023
        yield {"family": DEFAULT_FAMILY} | values


def _axes(entry: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """(label, value) pairs of each key of an entry's grid."""
    axes, size = {}, 1
    for key, values in entry.get("grid", {}).items():
        if key in entry:
            raise ValueError(f"{key} stands both in the entry and in its grid")
        if isinstance(values, dict):
            axes[key] = [(str(label), value) for label, value in values.items()]
        else:
            axes[key] = [(_label(value), value) for value in values]
        size *= len(axes[key])
        if size > MAX_TRIGGERS:
            raise ValueError(f"grid: more than {MAX_TRIGGERS} combinations")
    return axes


def _label(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
