# SPDX-License-Identifier: Apache-2.0
"""Trigger banks: the patches that a scan tries, read from YAML (docs/triggers.md)."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2defense.attacks import Trigger
from d2defense.config import config_root

DEFAULT_BANK = "plain"
MAX_TRIGGERS = 4096
_MAX_BYTES = 1 << 20
_FIELD = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,80}")

# Names of places, as placement and position of a Trigger.
_PLACES: dict[str, tuple[str, tuple[float, float]]] = {
    "center": ("center", (0.5, 0.5)),
    "top_left": ("inside", (0.0, 0.0)),
    "top_right": ("inside", (1.0, 0.0)),
    "bottom_left": ("inside", (0.0, 1.0)),
    "bottom_right": ("inside", (1.0, 1.0)),
    "random": ("random", (0.5, 0.5)),
    "background": ("background", (0.5, 0.5)),
}
_KEYS = (
    *("name", "grid", "pattern", "color", "second_color", "cells", "image"),
    *("size", "size_unit", "position", "opacity", "seed"),
)


class TriggerBankError(ValueError):
    """A trigger bank cannot be used; the message names the file, the entry and the reason."""


def load_bank(source: str | Path = DEFAULT_BANK) -> tuple[Trigger, ...]:
    """Read the triggers of a bank, grids expanded, in the order of the file.

    Args:
        source: a YAML file, or the name of one below ``configs/triggers``.

    Raises:
        TriggerBankError: the file cannot be read, or an entry of it cannot be used.
    """
    path = _find(source)
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
    if not isinstance(document, dict) or set(document) != {"triggers"}:
        raise TriggerBankError(f"{path}: must hold one key, 'triggers'")
    if not isinstance(document["triggers"], list) or not document["triggers"]:
        raise TriggerBankError(f"{path}: 'triggers' is not a list of entries")
    bank: dict[str, Trigger] = {}
    for number, entry in enumerate(document["triggers"], 1):
        place = f"{path}: entry {number}"
        try:
            for values in _expand(entry):
                trigger = _trigger(values, path.parent)
                if trigger.name in bank:
                    raise TriggerBankError(f"name {trigger.name!r} is used before")
                bank[trigger.name] = trigger
                if len(bank) > MAX_TRIGGERS:
                    raise TriggerBankError(f"more than {MAX_TRIGGERS} triggers")
        except (ValueError, TypeError) as error:
            raise TriggerBankError(f"{place}: {error}") from None
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


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    folder = config_root() / "triggers"
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if str(source) not in shipped:
        raise TriggerBankError(
            f"no trigger bank {str(source)!r}: neither a file nor one of {', '.join(shipped)}"
        )
    return shipped[str(source)]


def _expand(entry: Any) -> Iterator[dict[str, Any]]:
    """The entry, once for every combination of its grid's values."""
    if not isinstance(entry, dict):
        raise TriggerBankError("not a mapping")
    unknown = [str(key) for key in entry if key not in _KEYS]
    if unknown:
        raise TriggerBankError(f"unknown key {', '.join(unknown)}; known: {', '.join(_KEYS)}")
    name = entry.get("name")
    if not isinstance(name, str):
        raise TriggerBankError("'name' is missing or not a text")
    fixed = {key: value for key, value in entry.items() if key != "grid"}
    if "grid" not in entry:
        yield fixed
        return
    axes = _axes(entry["grid"], fixed)
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, (label for label, _ in combination), strict=True))
        values = dict(zip(axes, (value for _, value in combination), strict=True))
        unknown = [key for key in _FIELD.findall(name) if key not in labels]
        if unknown:
            raise TriggerBankError(f"name {name!r}: the grid has no {', '.join(unknown)}")
        yield fixed | values | {"name": _FIELD.sub(lambda field: labels[field[1]], name)}  # noqa: B023


def _axes(grid: Any, fixed: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """(label, value) pairs of each key of a grid."""
    if not isinstance(grid, dict) or not grid:
        raise TriggerBankError("'grid' is not a mapping of keys to lists")
    axes, size = {}, 1
    for key, values in grid.items():
        if key not in _KEYS or key in ("name", "grid"):
            raise TriggerBankError(f"grid: unknown key {key}")
        if key in fixed:
            raise TriggerBankError(f"{key} stands both in the entry and in its grid")
        if isinstance(values, dict) and values:
            axes[key] = [(str(label), value) for label, value in values.items()]
        elif isinstance(values, list) and values:
            axes[key] = [(_label(value), value) for value in values]
        else:
            raise TriggerBankError(f"grid: {key} is not a list or a mapping of labels to values")
        size *= len(axes[key])
        if size > MAX_TRIGGERS:
            raise TriggerBankError(f"grid: more than {MAX_TRIGGERS} combinations")
    return axes


def _label(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _trigger(values: dict[str, Any], folder: Path) -> Trigger:
    name = values["name"]
    if not _NAME.fullmatch(name):
        raise TriggerBankError(
            f"name {name!r} is not 1 to 80 of the characters A-Z a-z 0-9 _ . + -"
        )
    arguments: dict[str, Any] = {"name": name}
    for key in ("pattern", "size_unit"):
        if key in values:
            arguments[key] = _typed(name, key, values[key], str)
    for key in ("cells", "seed"):
        if key in values:
            arguments[key] = _typed(name, key, values[key], int)
    for key in ("color", "second_color"):
        if key in values:
            arguments[key] = _numbers(name, key, values[key], int, 3)
    if "opacity" in values:
        arguments["opacity"] = float(_typed(name, "opacity", values["opacity"], int, float))
    if "size" in values:
        size = values["size"]
        pair = size if isinstance(size, list) else [size, size]
        arguments["size"] = tuple(map(float, _numbers(name, "size", pair, (int, float), 2)))
    if "position" in values:
        arguments["placement"], arguments["position"] = _place(name, values["position"])
    if "image" in values:
        file = folder / _typed(name, "image", values["image"], str)
        try:
            arguments["image"] = file.read_bytes()
        except OSError as error:
            raise TriggerBankError(f"trigger {name}: image {file}: {error.strerror}") from None
        arguments.setdefault("pattern", "image")
    return Trigger(**arguments)


def _place(name: str, position: Any) -> tuple[str, tuple[float, float]]:
    if isinstance(position, str):
        if position not in _PLACES:
            raise TriggerBankError(
                f"trigger {name}: position {position!r} is none of {', '.join(_PLACES)}"
            )
        return _PLACES[position]
    x, y = _numbers(name, "position", position, (int, float), 2)
    return "center", (float(x), float(y))


def _typed(name: str, key: str, value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in types)
        raise TriggerBankError(f"trigger {name}: {key} {value!r} is not of type {expected}")
    return value


def _numbers(name: str, key: str, values: Any, types: Any, count: int) -> tuple[Any, ...]:
    numbers = isinstance(values, list) and all(
        isinstance(value, types) and not isinstance(value, bool) for value in values
    )
    if not numbers or len(values) != count:
        raise TriggerBankError(f"trigger {name}: {key} {values!r} is not a list of {count} numbers")
    return tuple(values)
