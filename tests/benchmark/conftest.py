# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from d2defense.study.results import ResultRow


@pytest.fixture
def made_up_rows():
    """Two methods on 20 clean and 24 backdoored detectors, and one that failed once."""
    rng = np.random.default_rng(7)
    rows = []
    for method, gain in (("good", 3.0), ("poor", 0.5)):
        for number in range(44):
            is_bad = number >= 20
            effect, family = (("ghost", "patch"), ("disappearance", "tile"))[number % 2]
            facts = {
                "detector": f"d{number}",
                "truth": "backdoored" if is_bad else "clean",
                "kind": ("fpn", "c4")[number // 2 % 2],
                "effect": effect if is_bad else "",
                "family": family if is_bad else "",
                "schedule": ("scratch", "fine_tune")[number % 2] if is_bad else "scratch",
                "took": True if is_bad else None,
                "seconds": 2.0,
                "images": 10,
                "dataset": "made_up",
            }
            score = float(rng.normal() + gain * is_bad)
            rows.append(ResultRow("detect", method, "score", score, **facts))
            rows.append(ResultRow("detect", method, "alarm", float(score > 1.5), **facts))
    return rows
