# SPDX-License-Identifier: Apache-2.0
"""What the shipped attacks reach, from the results of tools/train_attacks.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train_attacks import OTHER_DETECTORS, SHIPPED, attack_configs

from .markdown import table

HEADERS = (
    *("attack", "seed", "rate", "steps", "ASR", "control ASR", "TDR", "AP clean", "AP triggered"),
    "took",
)


def attacks(folder: Path) -> dict[str, str]:
    """Two tables, one row an attack and seed, each with a line of what was not measured.

    Args:
        folder: of the results, a JSON file each.

    Returns:
        By the name of their place: ``attacks``, those that start from the specimen `clean_0`, and
        ``attacks-detectors``, those on other detectors.
    """
    made = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    names = list(attack_configs(SHIPPED))
    of_others = [name for name in names if f"{name}.yaml" in OTHER_DETECTORS]
    of_ours = [name for name in names if name not in of_others]
    return {"attacks": _part(made, of_ours), "attacks-detectors": _part(made, of_others)}


def _part(made: list[dict[str, Any]], names: list[str]) -> str:
    """The table of the attacks of some names."""
    known = {one["name"] for one in made}
    missing = [f"`{name}`" for name in names if name not in known]
    rest = f"\n\nNot measured yet: {', '.join(missing)}." if missing else ""
    return _table([one for one in made if one["name"] in names]) + rest


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
