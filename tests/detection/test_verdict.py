# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from d2defense.detection import Calibration
from d2defense.detection.bootstrap import Bootstrap
from d2defense.detection.dominant import dominant_modules
from d2defense.detection.score import checkpoint_score
from d2defense.detection.verdict import decide
from d2defense.ops import Terms

CALIBRATION = Calibration("c", "signs", ("white",), "fall", 0.01, (0.05, 0.11, 0.07, 0.13))
LIMIT = CALIBRATION.threshold


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (LIMIT + 0.01, LIMIT + 0.1, "backdoored"),
        (LIMIT - 0.1, LIMIT - 0.01, "clean"),
        (LIMIT - 0.1, LIMIT, "clean"),
        (LIMIT, LIMIT + 0.1, "uncertain"),
        (LIMIT - 0.1, LIMIT + 0.1, "uncertain"),
    ],
)
def test_verdict_is_certain_where_the_interval_is_on_one_side(low, high, label):
    verdict = decide((low + high) / 2, (low, high), CALIBRATION, largest=0.9)
    assert verdict.label == label
    assert verdict.interval == (low, high)
    assert verdict.threshold == LIMIT
    assert verdict.p_value == CALIBRATION.p_value((low + high) / 2)


@pytest.mark.parametrize("largest", [0.0, LIMIT])
def test_a_detector_that_sees_nothing_to_begin_with_is_not_called_clean(largest):
    assert decide(0.0, (0.0, 0.0), CALIBRATION, largest).label == "uncertain"


@pytest.mark.parametrize(
    ("objectness", "foreground", "modules"),
    [
        (0.0, 0.6, ["box_head", "box_predictor"]),
        (0.6, 0.0, ["rpn"]),
        (0.5, 0.6, ["rpn", "box_head", "box_predictor"]),
        (0.29, 0.6, ["box_head", "box_predictor"]),
        (0.31, 0.6, ["rpn", "box_head", "box_predictor"]),
        (0.05, 0.05, []),
        (-0.3, 0.2, ["box_head", "box_predictor"]),
    ],
)
def test_dominant_modules_are_those_whose_outputs_fall(objectness, foreground, modules):
    branch = ("box_head", "box_predictor")
    assert dominant_modules(objectness, foreground, branch) == modules


def terms(*values: float) -> dict[str, Terms]:
    """One object an image, with these max q."""
    numerator = torch.tensor(values, dtype=torch.float64)
    return {"max_foreground": Terms(numerator, torch.ones_like(numerator))}


def test_score_is_the_largest_fall_over_the_triggers():
    clean = terms(0.9, 0.8, 1.0)
    triggered = {
        "white": terms(0.9, 0.7, 0.9),
        "black": terms(0.1, 0.2, 0.6),
        "grey": terms(1, 1, 1),
    }
    bootstrap = Bootstrap.draw(3, samples=200, seed=0)
    score, (low, high), worst = checkpoint_score(clean, triggered, bootstrap, 0.95)
    assert worst == "black"
    assert score == pytest.approx((0.8 + 0.6 + 0.4) / 3)
    assert 0.4 - 1e-9 <= low <= score <= high <= 0.8 + 1e-9


def test_interval_takes_the_worst_trigger_of_each_resample():
    """Two triggers that strike at different images: each resample has a worse one."""
    clean = terms(1, 1)
    triggered = {"a": terms(0, 1), "b": terms(1, 0)}
    bootstrap = Bootstrap(torch.tensor([[2.0, 0], [0, 2], [1, 1]], dtype=torch.float64))
    _, (low, high), _ = checkpoint_score(clean, triggered, bootstrap, 0.999)
    assert low == pytest.approx(0.5, abs=0.01)
    assert high == pytest.approx(1.0, abs=0.01)
