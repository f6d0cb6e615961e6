# SPDX-License-Identifier: Apache-2.0
"""d2defense adds keys to Detectron2's configuration, and changes none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from d2defense.config import get_d2defense_cfg


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_defaults_of_detectron2_are_left_alone() -> None:
    stock, merged = dict(leaves(get_cfg())), dict(leaves(get_d2defense_cfg()))
    assert {key: merged[key] for key in stock} == stock
    assert merged.keys() > stock.keys()
