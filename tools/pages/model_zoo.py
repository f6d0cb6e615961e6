# SPDX-License-Identifier: Apache-2.0
"""What tools/check_model_zoo.py found, from the file that it wrote."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from .markdown import page, table

RESULT = "model_zoo.json"


def model_zoo(folder: Path) -> str:
    """The table of all configs.

    Args:
        folder: holds the result file.
    """
    found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    counts = Counter(parity["outcome"] for parity in found["configs"])
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    introduction = (
        f"`python tools/check_model_zoo.py --json docs/reference/{RESULT}` "
        "builds every config of the model zoo's detectors with random weights, stock and "
        "instrumented, and compares bit by bit: the keys of the state dicts, the detections of a "
        "batch of two images of different sizes (masks and keypoints included), and the probe's "
        "boxes, objectness and class logits with what the stock model's own modules put out (of "
        "one-stage detectors, up to rounding, its class logits with those of an anchor). "
        f"{outcomes}. Made with {versions}."
    )
    rows = [
        [
            parity["config"],
            parity["roi_heads"],
            f"{parity['parameters'] / 1e6:.1f} M" if parity["parameters"] else "",
            str(parity["proposals"] or ""),
            str(parity["detections"] or ""),
            ": ".join(filter(None, (parity["outcome"], parity["detail"]))),
        ]
        for parity in found["configs"]
    ]
    headers = ("config", "heads", "parameters", "proposals", "detections", "outcome")
    return page("The model zoo, stock and instrumented", introduction, table(headers, rows))
