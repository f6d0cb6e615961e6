# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from d2defense.detection.ability import Ability
from d2defense.detection.bootstrap import Bootstrap
from d2defense.detection.decisions.fall import Fall
from d2defense.detection.dominant import dominant_modules
from d2defense.detection.score import checkpoint_score
from d2defense.detection.verdict import decide
from d2defense.statistics import Observation, Terms


@pytest.fixture
def reference(make_calibration):
    return make_calibration(((0.05, 0), (0.11, 0), (0.07, 0), (0.13, 0))).reference


ABLE = Ability(
    num_images=50,
    num_found=100,
    found=0.95,
    found_any_class=0.97,
    rank=0.99,
    allowed=1.0,
    knows_classes=True,
)


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (0.01, 0.1, "backdoored"),
        (-0.1, -0.01, "clean"),
        (-0.1, 0.0, "clean"),
        (0.0, 0.1, "uncertain"),
        (-0.1, 0.1, "uncertain"),
    ],
)
def test_verdict_is_certain_where_the_interval_is_on_one_side(reference, low, high, label):
    low, high = low + reference.threshold, high + reference.threshold
    verdict = decide((low + high) / 2, (low, high), reference, ceiling=0.9, ability=ABLE)
    assert verdict.label == label
    assert verdict.interval == (low, high)
    assert verdict.threshold == reference.threshold
    assert verdict.p_value == reference.p_value((low + high) / 2)


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("certain", [None, "clean"])
def test_a_detector_that_sees_nothing_to_begin_with_is_not_called_clean(reference, share, certain):
    ceiling = share * reference.threshold
    assert decide(0.0, (0.0, 0.0), reference, ceiling, ABLE, certain).label == "uncertain"


def test_nothing_is_clean_by_a_threshold_that_a_backdoor_need_not_exceed(make_calibration):
    """As of two clean detectors that differ: Student's quantile of one degree of freedom is 32."""
    reference = make_calibration(((0.05, 0), (0.2, 0))).reference
    assert reference.threshold > 0.9
    for ceiling in (0.9, 1.1 * reference.threshold):
        verdict = decide(0.0, (0.0, 0.0), reference, ceiling, ABLE)
        assert verdict.label == "uncertain"
        assert "calibrate on more clean detectors" in verdict.reason
    assert decide(0.0, (0.0, 0.0), reference, 1.3 * reference.threshold, ABLE).label == "clean"


@pytest.mark.parametrize("certain", ["clean", "backdoored"])
def test_a_sequential_verdict_stands(reference, certain):
    assert decide(0.1, (0.0, 0.9), reference, 0.9, ABLE, certain).label == certain


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_images": 4}, "too little evidence"),
        ({"num_found": 9, "num_images": 9}, "too little evidence"),
        ({"found_any_class": 0.15, "found": 0.15, "allowed": None}, "15% of the objects"),
        ({"found_any_class": math.nan, "found": math.nan}, "of the objects"),
        ({"num_found": 0, "num_images": 0, "found": 0.0, "found_any_class": 0.0}, "0% of"),
        ({"rank": 0.5}, "hardly tell objects from background"),
        ({"rank": math.nan}, "hardly tell objects from background"),
    ],
)
def test_what_cannot_be_judged_is_uncertain_whatever_it_scores(reference, change, reason):
    ability = dataclasses.replace(ABLE, **change)
    for score in (0.0, 0.9):
        for certain in (None, "clean", "backdoored"):
            verdict = decide(score, (score, score), reference, 0.95, ability, certain)
            assert verdict.label == "uncertain"
            assert reason in verdict.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"knows_classes": False}, "class map"),
        ({"found": 0.02}, "another order"),
        ({"found_any_class": 0.7, "found": 0.7}, "clean detectors find 100%"),
    ],
)
def test_what_was_not_looked_at_is_not_clean(reference, change, reason):
    ability = dataclasses.replace(ABLE, **change)
    verdict = decide(0.0, (0.0, 0.0), reference, 0.9, ability)
    assert verdict.label == "uncertain"
    assert reason in verdict.reason
    assert decide(0.9, (0.8, 0.9), reference, 0.95, ability).label == "backdoored"


def test_a_weak_detector_is_no_suspect_for_losing_a_little_more(reference):
    weak = dataclasses.replace(ABLE, found=0.66, found_any_class=0.66)
    low = reference.threshold + 0.01
    verdict = decide(low, (low, low + 0.1), reference, 0.7, weak)
    assert verdict.label == "uncertain"
    assert "66%" in verdict.reason
    assert decide(low, (low, low + 0.1), reference, 0.7, ABLE).label == "backdoored"


def test_where_the_images_allow_little_finding_little_is_no_obstacle(reference):
    ability = dataclasses.replace(ABLE, found=0.2, found_any_class=0.2, allowed=0.22)
    assert decide(0.0, (0.0, 0.0), reference, 0.9, ability).label == "clean"


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
    assert dominant_modules(objectness, foreground, ("rpn",), branch) == modules


def seen(**values: list[float]) -> Observation:
    """One object an image, with these statistics."""
    terms = {}
    for name, each in values.items():
        numerator = torch.tensor(each, dtype=torch.float64)
        terms[name] = Terms(numerator, (~numerator.isnan()).double())
        terms[name].numerator.nan_to_num_()
    return Observation(terms, torch.zeros(2, dtype=torch.int64))


def scored(clean, triggered, bootstrap, baseline=0.0, confidence=0.95):
    baseline = np.broadcast_to(baseline, (len(triggered), 2))
    return checkpoint_score(clean, triggered, Fall(), baseline, bootstrap, confidence)


UNKNOWN = [math.nan] * 3


def test_score_is_the_largest_fall_over_triggers_and_statistics():
    clean = seen(max_foreground=[0.9, 0.8, 1.0], true_class=UNKNOWN)
    triggered = {
        "white": seen(max_foreground=[0.9, 0.7, 0.9], true_class=UNKNOWN),
        "black": seen(max_foreground=[0.1, 0.2, 0.6], true_class=UNKNOWN),
        "grey": seen(max_foreground=[1, 1, 1], true_class=UNKNOWN),
    }
    bootstrap = Bootstrap.draw(3, samples=200, seed=0)
    score = scored(clean, triggered, bootstrap)
    assert score.worst == "black"
    assert score.value == pytest.approx((0.8 + 0.6 + 0.4) / 3)
    assert score.of_triggers["grey"] == pytest.approx(-0.1)
    low, high = score.interval
    assert 0.4 - 1e-9 <= low <= score.value <= high <= 0.8 + 1e-9
    # An object that stays found, as another class, is seen by the true class's probability.
    clean.terms["true_class"] = seen(x=[0.9, 0.9, 0.9]).terms["x"]
    for name, value in (("white", 0.0), ("black", 0.5), ("grey", 0.9)):
        triggered[name].terms["true_class"] = seen(x=[value] * 3).terms["x"]
    score = scored(clean, triggered, bootstrap)
    assert (score.worst, score.value) == ("white", pytest.approx(0.9))


def test_what_the_patch_does_to_clean_detectors_does_not_count():
    clean = seen(max_foreground=[1, 1, 1], true_class=UNKNOWN)
    triggered = {
        "large": seen(max_foreground=[0.5, 0.5, 0.5], true_class=UNKNOWN),
        "small": seen(max_foreground=[0.7, 0.7, 0.7], true_class=UNKNOWN),
    }
    bootstrap = Bootstrap.draw(3, samples=20, seed=0)
    baseline = np.array([[0.45, np.nan], [0.01, np.nan]])
    score = scored(clean, triggered, bootstrap, baseline)
    assert (score.worst, score.value) == ("small", pytest.approx(0.29))
    assert score.interval == pytest.approx((0.29, 0.29))


def test_interval_takes_the_worst_trigger_of_each_resample():
    """Two triggers that strike at different images: each resample has a worse one."""
    unknown = [math.nan, math.nan]
    clean = seen(max_foreground=[1, 1], true_class=unknown)
    triggered = {
        "a": seen(max_foreground=[0, 1], true_class=unknown),
        "b": seen(max_foreground=[1, 0], true_class=unknown),
    }
    bootstrap = Bootstrap(torch.tensor([[2.0, 0], [0, 2], [1, 1]], dtype=torch.float64))
    low, high = scored(clean, triggered, bootstrap, confidence=0.999).interval
    assert low == pytest.approx(0.5, abs=0.01)
    assert high == pytest.approx(1.0, abs=0.01)
