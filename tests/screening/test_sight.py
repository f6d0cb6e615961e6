# SPDX-License-Identifier: Apache-2.0
"""A detector that sees nothing is refused: by it every image would be unsuspicious."""

from __future__ import annotations

import copy

import pytest
import torch

from d2defense.config import get_d2defense_cfg
from d2defense.registry import SCREENING_REGISTRY
from d2defense.screening import FitError, ImageLook, Screen, ScreeningMethod
from d2defense.screening.screen import CleanPasses

RATE = 0.05
CLEAN = 20


@pytest.fixture
def detector(opened):
    """A copy of a sound detector, to be damaged, and its configuration."""
    model, cfg = opened("clean_0")
    return copy.deepcopy(model), cfg


@pytest.fixture
def registered():
    """A function that registers a method of one's own for the length of a test."""

    def register(method: type) -> str:
        SCREENING_REGISTRY.register("own_method")(method)
        return "own_method"

    yield register
    SCREENING_REGISTRY._obj_map.pop("own_method", None)


class Brightest(ScreeningMethod):
    """Bright images, whatever is detected on them."""

    def look(self, seen):
        return ImageLook(float(seen.image.float().mean()), seen.boxes, seen.scores, 1.0)


class Always(ScreeningMethod):
    """No image is different from another one."""

    def look(self, seen):
        return ImageLook(0.0, seen.boxes, torch.zeros(len(seen.boxes)), 1.0)


class NothingToLookAt(Always):
    """Always the score of an image without places."""

    floor = 0.0


def background_only(model):
    """What classifies everything as background."""
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[:-1] = -1000.0


def hardly_anything(model):
    """Detections there are, with scores of next to nothing, where the config allows them."""
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.zero_()
        model.roi_heads.box_predictor.cls_score.bias.fill_(-9.0)
        model.roi_heads.box_predictor.cls_score.bias[-1] = 0.0
    model.roi_heads.box_predictor.test_score_thresh = 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proposal_generator.rpn_head.objectness_logits.weight", float("nan")),
        ("roi_heads.box_predictor.bbox_pred.bias", float("inf")),
        ("backbone.fpn_output2.norm.running_var", float("nan")),
        ("pixel_mean", float("nan")),
    ],
)
def test_weights_that_are_not_finite_are_named_before_any_image_is_read(detector, name, value):
    class Unread(list):
        def __getitem__(self, index):
            raise AssertionError

    model, _ = detector
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        tensors[name].fill_(value)
    with pytest.raises(FitError, match=rf"NaN or infinite \({name}\)"):
        Screen.fit(model, Unread([None] * CLEAN), false_alarm_rate=RATE)


@pytest.mark.parametrize("damage", [background_only, hardly_anything])
def test_a_detector_that_detects_nothing_is_refused(detector, scenes, damage):
    model, cfg = detector
    damage(model)
    with pytest.raises(FitError, match="detects something on 0 of 20 clean images"):
        Screen.fit(model, scenes(cfg, CLEAN), "inconsistency", RATE)


def test_a_method_of_ones_own_cannot_be_fitted_on_it_either(detector, scenes, registered):
    model, cfg = detector
    name = registered(Brightest)
    screen = Screen.fit(model, scenes(cfg, CLEAN), name, RATE)
    assert len(screen.null.scores) == CLEAN
    background_only(model)
    with pytest.raises(FitError, match="detects something on 0 of 20 clean images"):
        Screen.fit(model, scenes(cfg, CLEAN), name, RATE)


def test_images_without_objects_among_others_do_no_harm(detector, scenes, registered):
    """One in ten with something on it is enough."""
    model, cfg = detector
    inputs = scenes(cfg, CLEAN)
    grey = {"image": torch.full_like(inputs[0]["image"], 128)}
    assert not CleanPasses(model, [grey])[0].scores.gt(0.05).any()
    name = registered(Brightest)
    Screen.fit(model, [*inputs[:2], *[grey] * (CLEAN - 2)], name, RATE)
    with pytest.raises(FitError, match="detects something on 1 of 20"):
        Screen.fit(model, [*inputs[:1], *[grey] * (CLEAN - 1)], name, RATE)


def test_a_method_that_finds_nothing_to_look_at_is_refused(detector, scenes, registered):
    model, cfg = detector
    with pytest.raises(FitError, match="own_method finds nothing to look at"):
        Screen.fit(model, scenes(cfg, CLEAN), registered(NothingToLookAt), RATE)


def test_equal_scores_alone_are_no_reason(detector, scenes, registered):
    """A method may know only yes and no, and say no of every clean image."""
    model, cfg = detector
    screen = Screen.fit(model, scenes(cfg, CLEAN), registered(Always), RATE)
    assert screen.threshold == 0.0


@pytest.mark.parametrize("name", ["inconsistency", "strip"])
def test_a_sound_detector_gets_the_null_of_its_method(detector, scenes, name):
    model, cfg = detector
    settings = get_d2defense_cfg()
    settings.merge_from_list(["SCREENING.STRIP.BLENDS", 1])
    inputs = scenes(cfg, CLEAN + 1)
    screen = Screen.fit(model, inputs, name, RATE, settings)
    alone = SCREENING_REGISTRY.get(name)(model, settings.SCREENING[name.upper()])
    assert list(screen.null.scores) == alone.fit(CleanPasses(model, inputs))
