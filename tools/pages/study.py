# SPDX-License-Identifier: Apache-2.0
"""Short tables of the published study, from its CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from .markdown import table

METHODS = {
    "vanilla": "plain fine-tuning, the paper's low rate",
    "renewal (paper)": "reset, then fine-tuning (the paper)",
    "fast": "plain fine-tuning, our schedule",
    "patches, no reset (ours)": "ours",
}
# What Table 3 alone has, for the one kind of detectors that it is about.
AT_OUR_SCHEDULE, ITS_DETECTOR = "no reset, all at the training's rate", "Faster R-CNN FPN"


def recovery(tables: Path) -> str:
    """What each repair gives back of the objects that the attack took, by kind of detector.

    Args:
        tables: folder of the study's CSV files.
    """
    shares: dict[str, dict[str, str]] = {}
    for row in _rows(tables / "table2_recovery.csv"):
        shares.setdefault(row["detector"], {})[row["method"]] = _spread(row, "recovered")
    for row in _rows(tables / "table3.csv"):
        if row["repair"] == AT_OUR_SCHEDULE:
            shares[ITS_DETECTOR]["fast"] = _spread(row, "recovered")
    rows = [[kind, *(of.get(m, "not measured") for m in METHODS)] for kind, of in shares.items()]
    return table(("recovered", *METHODS.values()), rows, numbers=True)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _spread(row: Mapping[str, str], column: str) -> str:
    """Mean and standard deviation."""
    text = f"{float(row[column]):.2f}"
    deviation = row[f"{column}: sd"]
    return f"{text} ± {float(deviation):.2f}" if deviation else text
