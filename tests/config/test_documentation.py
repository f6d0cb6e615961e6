# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md lists every key that d2defense adds, with its default."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from d2defense.config import config_root, get_d2defense_cfg

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(?P<key>[A-Z][A-Z0-9_.]+)` \| `(?P<default>.*?)` \| (?P<meaning>.+) \|$")


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


STOCK = dict(leaves(get_cfg()))
ADDED = {key: value for key, value in leaves(get_d2defense_cfg()) if key not in STOCK}


@pytest.fixture(scope="module")
def documented() -> dict[str, str]:
    rows = [ROW.match(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row["default"] for row in rows if row}


@pytest.mark.parametrize("key", sorted(ADDED))
def test_added_key_is_documented_with_its_default(key: str, documented: dict[str, str]) -> None:
    assert key in documented
    default = ast.literal_eval(documented[key])
    assert default == ADDED[key]
    assert type(default) is type(ADDED[key])


def test_every_documented_key_exists(documented: dict[str, str]) -> None:
    assert set(documented) <= set(ADDED)


def test_defaults_of_detectron2_are_left_alone() -> None:
    merged = dict(leaves(get_d2defense_cfg()))
    assert {key: merged[key] for key in STOCK} == STOCK


def test_every_shipped_config_is_listed() -> None:
    root = config_root()
    listed = re.findall(r"^\| `([^`]+\.yaml)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.yaml")]
    assert files
    assert [name for name in files if not any(fnmatch(name, row) for row in listed)] == []
    assert [row for row in listed if not any(fnmatch(name, row) for name in files)] == []
