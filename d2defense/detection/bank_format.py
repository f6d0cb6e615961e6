# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of trigger banks: what is shipped, with the parts that families bring."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema

from d2defense.registry import TRIGGER_REGISTRY
from d2defense.text import shorten

#: Of an entry that names none.
DEFAULT_FAMILY = "patch"
_WIDTH = 200


def bank_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a bank's file; ``$defs/<family>`` is that of one trigger.

    Every family that is registered says which keys its entries may have
    (:meth:`d2defense.triggers.Trigger.entry_properties`).
    """
    file = resources.files("d2defense") / "assets" / "triggers" / "bank.schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    common = schema["$defs"].pop("trigger")
    for name, family in TRIGGER_REGISTRY:
        rules = family.entry_rules()
        schema["$defs"][name] = (
            common
            | {"properties": common["properties"] | family.entry_properties()}
            | ({"allOf": rules} if rules else {})
        )
    return schema


class BankChecker:
    """Checks banks against :func:`bank_schema`, with the families that are registered by now."""

    def __init__(self) -> None:
        schema = bank_schema()
        self._file = jsonschema.Draft202012Validator(schema)
        self._families = {
            name: self._file.evolve(schema=schema["$defs"][name]) for name, _ in TRIGGER_REGISTRY
        }

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
        """Check one combination of an entry's values, ``family`` among them.

        Raises:
            ValueError: one line: the trigger's name, the key and the reason.
        """
        family = values["family"]
        if not isinstance(family, str) or family not in self._families:
            known = ", ".join(self._families)
            raise ValueError(f"trigger {values['name']}: family {family!r} is none of {known}")
        error = next(self._families[family].iter_errors(values), None)
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
