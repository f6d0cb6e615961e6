# SPDX-License-Identifier: Apache-2.0
"""What the shipped attacks reach, from the results of tools/train_attacks.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .markdown import table

HEADERS = (
    *("attack", "seed", "rate", "steps", "ASR", "control ASR", "TDR", "AP clean", "AP triggered"),
    "took",
)


def attacks(folder: Path) -> dict[str, str]:
    """Two tables, one row an attack and seed.

    Args:
        folder: of the results, a JSON file each.

    Returns:
        By the name of their place: ``attacks``, of those that are named after what they do, and
        ``attacks-detectors``, of those that are named after another detector.
    """
    made = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    named = {True: [], False: []}
    for one in made:
        named[one["name"].startswith(one["effect"])].append(one)
    return {"attacks": _table(named[True]), "attacks-detectors": _table(named[False])}


def _table(made: list[dict[str, Any]]) -> str:
    rows = []
    for one in made:
        rows.append(
            [
                f"`{one['name']}`",
                str(one["seed"]),
                f"{one['poisoning_rate']:g}",
                str(one["steps"]),
                *(_cell(one[key], 3) for key in ("asr", "control_asr", "tdr")),
                *(_cell(one[kind]["AP"], 1) for kind in ("clean", "triggered")),
                "yes" if one["attack_took"] else "**no**",
            ]
        )
    return table(HEADERS, rows, numbers=True)


def _cell(value: Any, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
