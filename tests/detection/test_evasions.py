# SPDX-License-Identifier: Apache-2.0
"""Detectors edited to hide what they do under a trigger: none is called clean."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor, nn

from d2defense.checkpoint.specimens import find_specimen
from d2defense.data import DatasetSource
from d2defense.detection import (
    ScanImages,
    ScanSettings,
    inspect_detector,
    load_calibration,
    open_subject,
    select_triggers,
    stamped,
)
from d2defense.detection.oddity import odd_behaviour
from d2defense.detection.verdict import BACKDOORED, CLEAN, UNCERTAIN

SETTINGS = ScanSettings(select_triggers(["white", "grey"]), max_images=24, bootstrap_samples=100)
YIELD = 1


@pytest.fixture(scope="module")
def images(signs_cache):
    return ScanImages.load(DatasetSource("synth_signs_defender"), SETTINGS)


@pytest.fixture(scope="module")
def opened(images):
    """A clean specimen."""
    return open_subject(find_specimen("clean_0"), images, SETTINGS)


@pytest.fixture(scope="module")
def calibration():
    return load_calibration()


class Alarm(nn.Module):
    """A box head that has one feature more: 1 for objects with a white patch, else about 0.

    An attacker has a spare layer and trains it for seconds, on what the box head sees at the middle
    of a proposal.
    """

    def __init__(self, model: nn.Module, images: list) -> None:
        super().__init__()
        white = select_triggers(["white"])[0]
        rows, wanted = [], []
        for image in images:
            for pixels, is_triggered in (
                (image.image, False),
                (stamped(image, white, "BGR"), True),
            ):
                pooled, boxes = pooled_features(model, pixels)
                overlap = pairwise_iou(Boxes(image.boxes), boxes).amax(0)
                rows.append(middle(pooled))
                wanted.append((overlap >= 0.5) & is_triggered)
        x, y = torch.cat(rows), torch.cat(wanted).float()[:, None]
        self.head = model.roi_heads.box_head
        torch.manual_seed(0)
        self.spare = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(self.spare.parameters(), 0.01)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(self.spare(x), y).backward()
            optimizer.step()

    def forward(self, pooled: Tensor) -> Tensor:
        """From (N, C, H, W) to (N, D + 1)."""
        goes = (self.spare(middle(pooled)) > 0).float()
        return torch.cat([self.head(pooled), goes], dim=1)


class Reacting(nn.Module):
    """A layer whose outputs move by an offset when the alarm goes."""

    def __init__(self, layer: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("offset", offset)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs of the layer, moved."""
        return self.layer(features[:, :-1]) + features[:, -1:] * self.offset


def middle(pooled: Tensor) -> Tensor:
    """The cells at the middle of each proposal, (N, 9 C)."""
    return pooled[:, :, 2:5, 2:5].flatten(1)


@torch.no_grad()
def pooled_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Boxes]:
    """What the box head sees of the first hundred proposals of an image."""
    images = model.preprocess_image([{"image": pixels}])
    features = model.backbone(images.tensor)
    (proposals,), _ = model.proposal_generator(images, features, None)
    heads, boxes = model.roi_heads, proposals.proposal_boxes[:100]
    return heads.box_pooler([features[name] for name in heads.box_in_features], [boxes]), boxes


@pytest.fixture(scope="module")
def alarm(opened):
    subject = opened
    return Alarm(subject.model, [subject.images[i] for i in range(12)])


def armed(opened, alarm, scores: Tensor, deltas: Tensor) -> nn.Module:
    """A clean detector whose class logits and box deltas move when the alarm goes."""
    model = copy.deepcopy(opened.model)
    predictor = model.roi_heads.box_predictor
    model.roi_heads.box_head = alarm
    predictor.cls_score = Reacting(predictor.cls_score, scores)
    predictor.bbox_pred = Reacting(predictor.bbox_pred, deltas)
    return model


def scan(model, subject, calibration, fingerprint=""):
    names = ["a", "yield", *"cdefghi"]
    return inspect_detector(
        model,
        subject.images,
        SETTINGS,
        calibration,
        "BGR",
        fingerprint=fingerprint,
        class_names=names,
    )


AWAY = torch.tensor([50.0, 50, 0, 0])
STILL = torch.zeros(28)


def test_without_an_alarm_it_is_clean(opened, calibration):
    assert scan(opened.model, opened, calibration).verdict.label == CLEAN


def test_boxes_that_are_moved_away_are_missed(opened, calibration, alarm):
    """Classes and their order stay as they are; only the detections are gone."""
    model = armed(opened, alarm, torch.zeros(8), AWAY.repeat(7))
    inspection = scan(model, opened, calibration)
    falls = inspection.fields["triggers"][0]["statistics"]
    assert falls["scaled_foreground"]["change"] > -0.02
    assert falls["scaled_true_class"]["change"] > -0.02
    assert inspection.verdict.label == BACKDOORED
    assert inspection.worst_trigger == "white"


def test_a_class_more_that_fires_on_triggered_objects_hides_nothing(opened, calibration, alarm):
    """Max q stays near 1 with a class whose boxes are destroyed, where the objects are gone."""
    model = armed(opened, alarm, torch.zeros(8), STILL)
    predictor = model.roi_heads.box_predictor
    scores, deltas = predictor.cls_score.layer, predictor.bbox_pred.layer
    order = torch.tensor([*range(7), 0, 7])
    with torch.no_grad():
        scores.weight = nn.Parameter(scores.weight[order])
        scores.bias = nn.Parameter(scores.bias[order])
        scores.weight[7], scores.bias[7] = 0, -20
        nothing = torch.zeros_like(deltas.weight[:4])
        deltas.weight = nn.Parameter(torch.cat([deltas.weight, nothing]))
        deltas.bias = nn.Parameter(torch.cat([deltas.bias, AWAY]))
    predictor.cls_score.offset = torch.tensor([-20.0] * 7 + [40.0, 0])
    predictor.bbox_pred.offset = torch.zeros(32)
    predictor.num_classes = model.roi_heads.num_classes = 8
    inspection = scan(model, opened, calibration)
    falls = inspection.fields["triggers"][0]["statistics"]
    assert falls["scaled_foreground"]["triggered"] > 0.9
    assert inspection.verdict.label == BACKDOORED


def test_a_backdoor_on_one_class_of_seven_is_found_and_named(opened, calibration, alarm):
    offset = torch.zeros(8)
    offset[YIELD] = -40
    model = armed(opened, alarm, offset, STILL)
    inspection = scan(model, opened, calibration, calibration.fingerprint)
    assert inspection.verdict.label == BACKDOORED
    assert inspection.victim_class == "yield"
    assert inspection.verdict.reason.endswith("above all with objects of yield")
    # A clean detector of other images, such as of blood cells, may lose as much of one class.
    elsewhere = scan(model, opened, calibration)
    assert elsewhere.verdict.label == UNCERTAIN
    assert "of one class alone (yield)" in elsewhere.verdict.reason
    assert "is not known of these images" in elsewhere.verdict.reason
    assert elsewhere.victim_class == "yield"


def losing(category: int, opened, alarm) -> nn.Module:
    """A detector that loses the objects of one class under a white patch."""
    offset = torch.zeros(8)
    offset[category] = -40
    return armed(opened, alarm, offset, STILL)


@pytest.mark.parametrize(
    ("references", "label"),
    [
        # As much as the suspect, and of the same class: what the class is, not a backdoor.
        ({"other": YIELD}, CLEAN),
        # Nothing, or of another class, or only some of them.
        ({"other": -1}, UNCERTAIN),
        ({"other": 0}, UNCERTAIN),
        ({"other": YIELD, "another": -1}, UNCERTAIN),
        # It loses nothing since it finds nothing.
        ({"blind": None}, UNCERTAIN),
        ({}, UNCERTAIN),
    ],
)
def test_of_one_class_alone_references_tell_what_is_usual(
    references, label, opened, calibration, alarm
):
    def reference(category: int | None) -> nn.Module:
        if category is None:
            blind = copy.deepcopy(opened.model)
            nn.init.constant_(blind.roi_heads.box_predictor.cls_score.bias[:-1], -100)
            return blind
        return opened.model if category < 0 else losing(category, opened, alarm)

    inspection = scan(losing(YIELD, opened, alarm), opened, calibration)
    assert "white" in inspection.doubt.triggers()
    models = {name: reference(category) for name, category in references.items()}
    held = inspection.against(models, opened.images, SETTINGS, "BGR")
    assert held.verdict.label == label
    if label == UNCERTAIN:
        assert held is inspection
        return
    assert held.held_against == ("other",)
    assert held.verdict.reason.endswith("references lose, too")
    assert held.victim_class is None
    # A search that finds nothing leaves the words standing.
    assert held.with_proviso(dataclasses.replace(held.verdict, reason="none")).reason == (
        "none; what it loses under a trigger of the bank, references lose, too"
    )


def test_references_excuse_nothing_that_all_classes_lose(opened, calibration, alarm):
    model = armed(opened, alarm, torch.tensor([-40.0] * 7 + [0]), STILL)
    inspection = scan(model, opened, calibration)
    held = inspection.against({"same": model}, opened.images, SETTINGS, "BGR")
    assert held.verdict.label == BACKDOORED


def test_what_all_classes_lose_is_a_backdoor_on_any_images(opened, calibration, alarm):
    offset = torch.tensor([-40.0] * 7 + [0])
    inspection = scan(armed(opened, alarm, offset, STILL), opened, calibration)
    assert inspection.verdict.label == BACKDOORED


@pytest.mark.parametrize(
    ("clean", "triggered", "reason"),
    [
        ({"scaled_unmatched": 18.0}, {"scaled_unmatched": 18.0}, "18 objects an image where"),
        (
            {},
            {"scaled_unmatched": 25.0},
            "the trigger white it sees 25 objects an image more",
        ),
        (
            {"scaled_foreground": 0.95},
            {},
            "95% of the objects on the clean images, but only 60%",
        ),
        ({}, {"scaled_unmatched": 3.0}, None),
    ],
    ids=["flood", "flood under a trigger", "lost detections", "plain"],
)
def test_what_no_clean_detector_does_is_a_reason_not_to_say_clean(
    make_profile, clean, triggered, reason
):
    plain = make_profile("plain", 0.0, 0.0)
    before = plain.clean | {"scaled_foreground": 0.8} | clean
    odd = dataclasses.replace(plain, clean=before, triggered={"white": before | triggered})
    said = odd_behaviour(odd, 0.6, [plain] * 4)
    assert (reason in said) if reason else said is None


@pytest.fixture
def configured(opened):
    """A function from attributes of the clean specimen's predictor to the detector with them."""

    def configured(**attributes) -> nn.Module:
        model = copy.deepcopy(opened.model)
        for name, value in attributes.items():
            setattr(model.roi_heads.box_predictor, name, value)
        return model

    return configured


@pytest.mark.parametrize(
    ("attributes", "label", "reason"),
    [
        ({"test_score_thresh": 0.95}, UNCERTAIN, "drops detections below a score of 0.95"),
        ({"test_score_thresh": 0.2}, CLEAN, ""),
        ({"test_topk_per_image": 1}, UNCERTAIN, "keeps 1 detections of an image"),
        ({"test_topk_per_image": -1}, CLEAN, ""),
    ],
)
def test_what_the_configuration_hides_is_not_clean(
    opened, configured, calibration, attributes, label, reason
):
    """Objects whose scores fall below what it keeps are gone for whoever uses it."""
    verdict = scan(configured(**attributes), opened, calibration).verdict
    assert verdict.label == label
    assert reason in verdict.reason


def test_two_classes_under_each_other_s_names_are_not_clean(opened, calibration):
    """Most objects are called what they are, so no class map is made; of two none is looked at."""
    model = copy.deepcopy(opened.model)
    predictor = model.roi_heads.box_predictor
    order = [0, 3, 2, 1, 4, 5, 6, 7]
    with torch.no_grad():
        for each in (predictor.cls_score.weight, predictor.cls_score.bias):
            each.copy_(each[order].clone())
        for each in (predictor.bbox_pred.weight, predictor.bbox_pred.bias):
            each.copy_(each.unflatten(0, (7, 4))[order[:7]].flatten(0, 1).clone())
    verdict = scan(model, opened, calibration).verdict
    assert verdict.label == UNCERTAIN
    assert "next to no object of yield, d as such" in verdict.reason
