# SPDX-License-Identifier: Apache-2.0
"""The keys of a result file, from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from d2defense.report.results import result_schema

from .markdown import page, table

INTRODUCTION = """\
What `result.json` holds. Every key is there; `null` means that there is no data. Statistics:
[method.md](../method.md#what-is-measured). More: [result-format.md](../result-format.md)."""

Rows = Iterator[tuple[str, str]]


def result() -> str:
    """One line a key.

    Raises:
        ValueError: a key of the top has no description in the schema.
    """
    schema = result_schema()
    rows = [(f"`{key}`", meaning) for key, meaning in _rows(schema, schema)]
    return page("Keys of a result", INTRODUCTION, table(("key", "value"), rows))


def _rows(
    schema: dict[str, Any], node: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, str]]:
    for name, reference in node.get("properties", {}).items():
        inner = _resolved(schema, reference)
        if "description" not in inner:
            if not path:
                raise ValueError(f"{name} has no description in the schema")
            continue
        key = f"{path}.{name}".lstrip(".")
        items = _resolved(schema, inner.get("items", {}))
        held = inner.get("properties", items.get("properties", {}))
        plain = [f"`{n}`" for n, one in held.items() if "description" not in _resolved(schema, one)]
        more = plain or [f"`{value}`" for value in inner.get("enum", ())]
        yield key, "; ".join(filter(None, (inner["description"], ", ".join(more))))
        yield from _rows(schema, inner if "properties" in inner else items, key)


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a ``$ref`` stands for, below what is said beside it."""
    target = node.get("$ref", "").removeprefix("#/$defs/")
    return {**schema["$defs"][target], **node} if target else node
