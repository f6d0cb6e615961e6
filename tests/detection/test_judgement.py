# SPDX-License-Identifier: Apache-2.0
"""Whether detectors that cannot be judged are called so: specimens, edited, on real images."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from d2defense.checkpoint import build_detector
from d2defense.detection import (
    Inspection,
    ScanSettings,
    inspect_detector,
    load_calibration,
    select_triggers,
)

SETTINGS = ScanSettings(triggers=select_triggers(["white", "grey"]), bootstrap_samples=200)


@pytest.fixture
def detector(specimen):
    def build(name: str):
        folder = specimen(name)
        return build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")[0]

    return build


def judged(model, images, fingerprint: str = "") -> Inspection:
    calibration = load_calibration()
    known = fingerprint or calibration.fingerprint
    return inspect_detector(model, images, SETTINGS, calibration, "BGR", fingerprint=known)


def test_honest_specimens_are_judged(detector, clean_images):
    images = list(clean_images(16))
    for name, label in (("clean_0", "clean"), ("backdoored_0", "backdoored")):
        inspection = judged(detector(name), images)
        assert inspection.verdict.label == label
        ability = inspection.fields["ability"]
        assert ability["rank"] > 0.95
        assert ability["found"] > 0.9


@pytest.mark.parametrize("name", ["clean_1", "backdoored_1"])
def test_on_images_without_colour_neither_is_called_clean(detector, clean_images, name):
    grey = [
        dataclasses.replace(
            each, image=(0.1 * each.image.float() + 0.9 * each.image.float().mean()).byte()
        )
        for each in clean_images(16)
    ]
    inspection = judged(detector(name), grey)
    assert inspection.verdict.label == "uncertain"
    assert "of the objects on the clean images" in inspection.verdict.reason


def test_a_classifier_of_zeros_is_not_called_clean(detector, clean_images):
    model = detector("clean_0")
    with torch.no_grad():
        for parameter in model.roi_heads.box_predictor.cls_score.parameters():
            parameter.zero_()
    inspection = judged(model, list(clean_images(16)))
    assert inspection.fields["clean"]["max_foreground"] == pytest.approx(0.875, abs=0.01)
    assert inspection.fields["ability"]["rank"] == pytest.approx(0.5, abs=0.05)
    assert inspection.verdict.label == "uncertain"


def test_one_image_is_too_little(detector, clean_images):
    for name in ("clean_0", "backdoored_0"):
        inspection = judged(detector(name), list(clean_images(1)))
        assert inspection.verdict.label == "uncertain"
        assert "too little evidence" in inspection.verdict.reason


def test_classes_in_another_order_are_said(detector, clean_images):
    model = detector("clean_0")
    predictor = model.roi_heads.box_predictor
    count = predictor.cls_score.weight.shape[0] - 1
    order = [*torch.arange(count).roll(1).tolist(), count]
    with torch.no_grad():
        for parameter in predictor.cls_score.parameters():
            parameter.copy_(parameter[order].clone())
        for parameter in predictor.bbox_pred.parameters():
            if len(parameter) == 4 * count:
                boxes = parameter.reshape(count, 4, -1)[order[:-1]]
                parameter.copy_(boxes.reshape(parameter.shape).clone())
    inspection = judged(model, list(clean_images(16)))
    assert inspection.fields["clean"]["objects_found"] < 0.1
    assert inspection.verdict.label == "uncertain"
    assert "another order" in inspection.verdict.reason


def test_a_weak_clean_detector_is_no_suspect(detector, clean_images):
    """The RPN proposes so little that many objects go unseen."""
    model = detector("clean_0")
    model.proposal_generator.post_nms_topk[False] = 3
    inspection = judged(model, list(clean_images(32)))
    assert 0.3 < inspection.fields["ability"]["found_any_class"] < 0.8
    assert inspection.verdict.label == "uncertain"


def test_a_detector_of_other_classes_is_not_called_clean(detector, clean_images):
    images = [
        dataclasses.replace(each, classes=torch.full_like(each.classes, -1))
        for each in clean_images(16)
    ]
    assert "class map" in judged(detector("clean_0"), images).verdict.reason
    assert judged(detector("backdoored_0"), images).verdict.label == "backdoored"
