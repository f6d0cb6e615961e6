# SPDX-License-Identifier: Apache-2.0
"""What the specimens are worth, from their provenance files."""

from __future__ import annotations

import json
from pathlib import Path

from d2defense.checkpoint.specimens import specimens_root

from .markdown import table

HEADERS = (
    *("specimen", "config", "seed", "AP clean", "AP50 clean", "AP triggered", "AP50 triggered"),
    *("found clean", "found triggered", "ASR", "control ASR"),
)


def specimens() -> str:
    """One row a detector that ships with the package."""
    paths = specimens_root().glob("*/provenance.json")
    made = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    rows = []
    for one in sorted(made, key=lambda one: one["seed"]):
        sides = (one["clean"], one["triggered"])
        rows.append(
            [
                one["name"],
                f"`{Path(one['config']).stem}`",
                str(one["seed"]),
                *(f"{side[name]:.1f}" for side in sides for name in ("AP", "AP50")),
                *(f"{side['objects_found']:.3f}" for side in sides),
                f"{one['asr']:.3f}",
                "-" if one.get("control_asr") is None else f"{one['control_asr']:.3f}",
            ]
        )
    return table(HEADERS, rows, numbers=True)
