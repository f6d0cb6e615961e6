# SPDX-License-Identifier: Apache-2.0
"""Made-up results and examples, complete and valid, for the report's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from d2defense.report.examples import Example

_STATISTICS = ("tau", "confident_d", "gap", "objects_found", "max_objectness", "max_foreground")


def _trigger(name: str, score: float) -> dict[str, Any]:
    statistic = {"clean": 0.95, "triggered": 0.45, "change": -0.5, "interval": [-0.56, -0.44]}
    return {
        "name": name,
        "score": score,
        "statistics": {key: copy.deepcopy(statistic) for key in _STATISTICS},
    }


@pytest.fixture
def make_result() -> Callable[..., dict[str, Any]]:
    """A function that makes a valid result; keywords replace top-level values."""

    def make(name: str = "backdoored_0", **changes: Any) -> dict[str, Any]:
        result = {
            "schema_version": 2,
            "name": name,
            "checkpoint": {
                "path": f"models/{name}/model_final.pth",
                "config": f"models/{name}/config.yaml",
                "format": "pth",
                "sha256": "ab" * 32,
                "config_sha256": "12" * 32,
                "size_bytes": 1_500_000,
            },
            "scan_key": "34" * 32,
            "architecture": {
                "meta_architecture": "InstrumentedRCNN",
                "backbone": "tiny_fpn",
                "proposal_generator": "InstrumentedRPN",
                "roi_heads": "InstrumentedROIHeads",
                "num_classes": 8,
                "num_parameters": 750_000,
            },
            "dataset": {
                "name": "synth_signs_defender",
                "num_images": 60,
                "num_objects": 190,
                "fingerprint": "cd" * 32,
            },
            "settings": {"topk": 5, "epsilon": 0.1},
            "verdict": "backdoored",
            "score": 0.61,
            "score_interval": [0.55, 0.67],
            "threshold": 0.3,
            "p_value": 0.00001,
            "calibration": "default thresholds",
            "worst_trigger": "white",
            "dominant_modules": ["box_head", "box_predictor"],
            "clean": dict.fromkeys(_STATISTICS, 0.5),
            "triggers": [_trigger("grey", 0.05), _trigger("white", 0.61)],
            "histogram": {"edges": [0.0, 0.5, 1.0], "clean": [9, 1], "triggered": [5, 5]},
            "timing": {"seconds": 3.2, "images_per_second": 98.0},
            "environment": {"torch": "2.15.0", "isolation": {"mode": "process"}},
            "warnings": [],
            "error": None,
        }
        result.update(changes)
        return result

    return make


@pytest.fixture
def make_example() -> Callable[..., Example]:
    """A function that makes an example of two objects, the second of which may be missed."""

    def make(missed: bool = False, size: int = 128, class_name: str = "stop") -> Example:
        targets = np.array([[8, 8, 48, 48], [70, 60, 118, 108]], dtype=float) * size / 128
        detected = targets[:1] if missed else targets
        return Example(
            image=np.full((size, size, 3), 90, dtype=np.uint8),
            target_boxes=targets,
            proposal_boxes=targets,
            objectness=np.array([0.98, 0.95]),
            foreground=np.array([0.96, 0.03 if missed else 0.94]),
            detection_boxes=detected,
            detection_scores=np.full(len(detected), 0.9),
            detection_classes=[class_name] * len(detected),
        )

    return make
