# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of trigger banks: what is shipped, with the parts that patterns bring."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema

from d2defense.registry import PATTERN_REGISTRY
from d2defense.text import shorten

_WIDTH = 200


def bank_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a bank's file; ``$defs/trigger`` is that of one trigger.

    Every pattern that is registered has its say in a trigger's ``settings``
    (:meth:`d2defense.attacks.Pattern.settings_schema`).
    """
    file = resources.files("d2defense") / "assets" / "triggers" / "bank.schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    parts = [
        {
            "if": {"properties": {"pattern": {"const": name}}, "required": ["pattern"]},
            "then": {"properties": {"settings": pattern.settings_schema()}},
        }
        for name, pattern in PATTERN_REGISTRY
    ]
    entry, trigger = (schema["$defs"][name] for name in ("entry", "trigger"))
    trigger["dependentSchemas"] = {"settings": {"allOf": parts}}
    # What the values are is asked of each combination of the grid's.
    entry["properties"] = dict.fromkeys(trigger["properties"], True) | entry["properties"]
    return schema


class BankChecker:
    """Checks banks against :func:`bank_schema`, with the patterns that are registered by now."""

    def __init__(self) -> None:
        schema = bank_schema()
        self._file = jsonschema.Draft202012Validator(schema)
        self._trigger = self._file.evolve(schema=schema["$defs"]["trigger"])

    def check_file(self, document: Any) -> None:
        """Check all of a file but what its entries' combinations are.

        Raises:
            ValueError: one line: the entry's number, the place in it and the reason.
        """
        error = next(self._file.iter_errors(document), None)
        if error is not None:
            path = list(error.absolute_path)
            place = ""
            if len(path) > 1:
                _, number, *path = path
                place = f"entry {number + 1}: "
            raise ValueError(place + _reason(error, path))

    def check_trigger(self, values: dict[str, Any]) -> None:
        """Check one combination of an entry's values.

        Raises:
            ValueError: one line: the trigger's name, the key and the reason.
        """
        error = next(self._trigger.iter_errors(values), None)
        if error is not None:
            path = list(error.absolute_path)
            of = f"trigger {values['name']}: " if path and path[0] != "name" else ""
            raise ValueError(of + _reason(error, path))


def _reason(error: jsonschema.ValidationError, path: list[str | int]) -> str:
    """What is wrong at a place, in the words of the schema's descriptions."""
    place = "".join(f"[{key}]" if isinstance(key, int) else f": {key}" for key in path)
    place = place.removeprefix(": ")
    if error.validator in ("required", "additionalProperties"):
        known = error.schema.get("properties", {})
        if error.validator == "required":
            missing = (key for key in error.schema["required"] if key not in error.instance)
            reason = f"{next(missing)!r} is missing"
        else:
            unknown = ", ".join(str(key) for key in error.instance if key not in known)
            reason = f"unknown key {unknown}; known: {', '.join(known) or 'none'}"
        return shorten(f"{place}: {reason}" if place else reason, _WIDTH)
    if "description" not in error.schema:
        return shorten(f"{place}: {error.message}", _WIDTH)
    value = f"{place} {shorten(repr(error.instance), _WIDTH // 2)} is " if place else ""
    return shorten(f"{value}not {error.schema['description']}", _WIDTH)
