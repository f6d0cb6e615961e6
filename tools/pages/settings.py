# SPDX-License-Identifier: Apache-2.0
"""Every key that d2defense adds to Detectron2's configuration, from the comments above it."""

from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode, get_cfg

from d2defense.config import add_d2defense_config
from d2defense.registry import CONFIGURED

from .markdown import page, table

INTRODUCTION = """\
The keys that d2defense adds to Detectron2's. How to set them:
[configuration.md](../configuration.md)."""

#: Where each key was set: by the node that holds it, and its name there.
Places = dict[tuple[int, str], tuple[str, int]]


def settings(add_config: Callable[[CfgNode], None] = add_d2defense_config) -> str:
    """One section a node of the configuration.

    Args:
        add_config: adds the keys to Detectron2's configuration.

    Raises:
        ValueError: a key has no comment above it.
    """
    stock = get_cfg()
    with _recorded() as places:
        cfg = get_cfg()
        add_config(cfg)
    comments = Comments(places)
    parts = {
        f"{registry.node}.{name.upper()}": f"Of the {registry.kind} `{name}`: {line}"
        for registry in CONFIGURED
        for name, line in registry.choices().items()
    }
    sections = []
    for path, node in _nodes(cfg):
        added = [name for name in node if _is_added(stock, path, name)]
        rows = [
            [f"`{path}.{name}`", f"`{_literal(node[name])}`", comments.of(node, path, name)]
            for name in added
            if not isinstance(node[name], CfgNode)
        ]
        if rows:
            introduction = parts.get(path) or comments.of_node(cfg, path)
            sections += [f"## {path}", *([introduction] if introduction else [])]
            sections.append(table(("key", "default", "meaning"), rows))
    return page("Settings", INTRODUCTION, *sections)


class Comments:
    """The comments above the statements that set keys.

    Args:
        places: where each was set.
    """

    def __init__(self, places: Places) -> None:
        self._places = places

    def of(self, node: CfgNode, path: str, name: str) -> str:
        """The comment of a key.

        Raises:
            ValueError: it has none.
        """
        comment = self._above(node, name)
        if not comment:
            raise ValueError(f"{path}.{name} has no comment above it where it is set")
        return comment

    def of_node(self, cfg: CfgNode, path: str) -> str:
        """The comment of a node; "" for none."""
        *parents, name = path.split(".")
        for parent in parents:
            cfg = cfg[parent]
        return self._above(cfg, name)

    def _above(self, node: CfgNode, name: str) -> str:
        file, number = self._places.get((id(node), name), ("", 0))
        lines: list[str] = []
        while (line := linecache.getline(file, number - 1 - len(lines)).strip()).startswith("#"):
            lines.insert(0, line.lstrip("# "))
        return " ".join(lines)


@contextmanager
def _recorded() -> Iterator[Places]:
    """Note file and line of every statement that sets a key, wherever it stands."""
    places: Places = {}
    original = CfgNode.__setattr__

    def setattr_and_note(node: CfgNode, name: str, value: Any) -> None:
        frame = sys._getframe(1)
        places[id(node), name] = frame.f_code.co_filename, frame.f_lineno
        original(node, name, value)

    CfgNode.__setattr__ = setattr_and_note
    try:
        yield places
    finally:
        CfgNode.__setattr__ = original


def _nodes(node: CfgNode, path: str = "") -> Iterator[tuple[str, CfgNode]]:
    yield path, node
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _nodes(value, f"{path}.{name}".lstrip("."))


def _is_added(stock: CfgNode, path: str, name: str) -> bool:
    for part in filter(None, path.split(".")):
        if part not in stock:
            return True
        stock = stock[part]
    return name not in stock


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
