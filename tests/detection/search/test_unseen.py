# SPDX-License-Identifier: Apache-2.0
"""What a search could not see, or not tell from clean detectors, is never clean."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2defense.checkpoint.specimens import find_specimen
from d2defense.data import DatasetSource
from d2defense.detection import CleanImage, ScanImages, ScanSettings, open_subject
from d2defense.detection.bootstrap import Bootstrap
from d2defense.detection.search import (
    ALONE,
    REFERENCES,
    SearchSettings,
    divide,
    levels,
    search_detector,
    shipped_null,
)
from d2defense.detection.search import race as race_module
from d2defense.detection.search.arms import Arm, all_goals, starts
from d2defense.detection.search.judge import Judge
from d2defense.detection.search.measure import Measured
from d2defense.detection.search.optimise import ArmState
from d2defense.detection.search.race import RaceSettings
from d2defense.detection.search.search import SearchOutcome
from d2defense.detection.search.verdict import with_search
from d2defense.detection.verdict import BACKDOORED, CLEAN, UNCERTAIN, Verdict
from d2defense.modeling import folded

NAMES = [f"c{index}" for index in range(7)]
BOXES = torch.tensor([[20.0 * index, 0, 20 * index + 18, 18] for index in range(7)])
IMAGES = [
    CleanImage(str(index), torch.zeros(3, 150, 150), BOXES, torch.arange(7), index)
    for index in range(12)
]
OBJECTS = ("disappearance", "objects")
BACKGROUND = ("ghost", "background")


class Fake:
    """A detector that loses objects of some classes under what is bright, and never sees others.

    On the common scale all that it says is sure; a picture that is not black bears a trigger.
    """

    device = torch.device("cpu")
    backbone = type("Backbone", (), {"size_divisibility": 1})

    def __init__(self, lost=(), never=(), least=0.0):
        self.lost, self.never, self.least = lost, never, least

    def probe(self, inputs, with_detections, score_threshold):
        """Detections of the objects that are left."""
        detections = []
        for each in inputs:
            bears = float(each["image"].max()) > self.least
            gone = {*self.never, *(self.lost if bears else ())}
            kept = torch.tensor([index not in gone for index in range(7)])
            detections.append(
                Instances(
                    each["image"].shape[1:], pred_boxes=Boxes(BOXES[kept]),
                    pred_classes=torch.arange(7)[kept], scores=torch.ones(int(kept.sum())),
                )
            )  # fmt: skip
        return type("Output", (), {"detections": detections})


def searched(suspect, *references, arms, images=IMAGES, mode=None):
    """What a search that found these arms amounts to, by the null that is shipped."""
    null = shipped_null().of(mode or (REFERENCES if references else ALONE), "fast")
    subjects = [Measured.of(each, images, images, "BGR") for each in (suspect, *references)]
    judge = Judge(
        subjects, images, NAMES, "BGR", null, Bootstrap.draw(len(images), 100, 0), 0.95, 0
    )
    pairs = []
    for kind, budget in arms:
        goal = next(each for each in all_goals(NAMES) if each.kind == kind)
        start = next(each for each in starts(kind[1]) if each.name == budget)
        pairs += judge(ArmState.begin(Arm(goal, start), torch.device("cpu")))
    outcome = SearchOutcome.of(*zip(*pairs, strict=True), null, 0.95)
    return outcome, with_search(Verdict(CLEAN, "nothing", 0.0, (0.0, 0.0), 0.2, 0.5), outcome)


OVERLAY, SMALL, LARGE = "overlay of 32/255", "patch of 20 %", "patch of 40 %"


def test_a_detector_that_loses_nothing_is_clean():
    outcome, verdict = searched(Fake(), Fake(), arms=[(OBJECTS, OVERLAY), (OBJECTS, LARGE)])
    assert outcome.is_clear
    assert verdict.label == CLEAN


@pytest.mark.parametrize("others", [(), (Fake(),)], ids=["alone", "beside a good one"])
def test_a_reference_that_knows_no_object_of_a_class_hides_nothing(others):
    suspect, ignorant = Fake(lost=(6,)), Fake(never=(6,))
    outcome, verdict = searched(suspect, *others, ignorant, arms=[(OBJECTS, SMALL)])
    if others:
        assert verdict.label == BACKDOORED
        assert outcome.arms[0].arm.goal.victim_class == 6
    else:
        assert verdict.label == UNCERTAIN
        assert "disappearance of c6" in verdict.reason
        assert "no reference finds such objects" in verdict.reason


def test_what_clean_detectors_may_show_by_the_arm_that_shows_it_is_not_clean():
    """By the largest patch the null would take more than all objects of one class."""
    arms = [(OBJECTS, OVERLAY), (OBJECTS, LARGE)]
    outcome, verdict = searched(Fake(lost=(6,), least=100), Fake(), arms=arms)
    assert outcome.is_low
    assert verdict.label == UNCERTAIN
    assert "disappearance of c6" in verdict.reason


def test_against_nothing_nothing_is_clean():
    for suspect in (Fake(), Fake(lost=range(7), least=100)):
        outcome, verdict = searched(suspect, arms=[(OBJECTS, OVERLAY), (OBJECTS, LARGE)])
        assert not outcome.is_clear
        assert verdict.label == UNCERTAIN
        assert "--reference" in verdict.reason


def test_a_reference_that_loses_all_excuses_nothing():
    everything = Fake(lost=range(7))
    outcome, verdict = searched(everything, everything, arms=[(OBJECTS, SMALL)])
    assert "disappearance on objects" in outcome.blind
    assert verdict.label == UNCERTAIN
    assert "references react" in verdict.reason


def test_an_effect_that_has_no_place_on_the_images_is_not_absent():
    """Close-ups: there is no background for a ghost."""
    boxes = torch.tensor([[2.0, 2, 74, 148], [76, 2, 148, 148]])
    images = [
        CleanImage(str(index), torch.zeros(3, 150, 150), boxes, torch.arange(2), index)
        for index in range(12)
    ]
    arms = [(OBJECTS, OVERLAY), (BACKGROUND, SMALL)]
    outcome, verdict = searched(Fake(), Fake(), arms=arms, images=images)
    assert outcome.is_low
    assert verdict.label == UNCERTAIN
    assert "ghost on background (0 places" in verdict.reason


@pytest.fixture(scope="module")
def ghost(signs_cache):
    """The ghost specimen, a clean one, and images divided in two."""
    settings = ScanSettings(max_images=24)
    images = ScanImages.load(DatasetSource("synth_signs_defender"), settings)
    opened = {n: open_subject(find_specimen(n), images, settings) for n in ("ghost_0", "clean_1")}
    seen = opened["ghost_0"].images
    parts = divide([seen[index] for index in range(len(seen))], 0)
    return {name: each.model for name, each in opened.items()}, parts, images.class_names


@pytest.fixture
def brief(monkeypatch):
    """A search of ghosts by patches alone, of a few steps."""
    settings = RaceSettings(
        scout_steps=2, targets=1, heat_steps=2, finalists=1, steps=4, families=("patch",)
    )
    monkeypatch.setattr(levels, "LEVELS", MappingProxyType({"fast": settings}))
    monkeypatch.setattr(
        race_module,
        "all_goals",
        lambda names: [g for g in all_goals(names) if g.kind == BACKGROUND][:2],
    )


def search(model, ghost):
    models, (tuning, held_out), names = ghost
    return search_detector(
        model, {"clean_1": models["clean_1"]}, tuning, held_out, names, SearchSettings("fast"),
        "BGR", bootstrap_samples=50,
    )  # fmt: skip


def rescaled(model):
    """The same detector, in which weight and norm of a channel multiply to more than there is.

    It reads a channel that is always 0.
    """
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    first, second = layers["backbone.res4.0.conv1"], layers["backbone.res4.0.conv2"]
    with torch.no_grad():
        reach = first.norm.weight.abs() * second.weight.abs().sum((0, 2, 3))
        dead = int(reach.argmin())
        first.norm.weight[dead], first.norm.bias[dead] = 0, -1
        second.weight[0] /= 2.0**80
        second.norm.weight[0] *= 2.0**80
        second.norm.running_mean[0] /= 2.0**80
        second.weight[0, dead] = 2.0**60
    return model


def test_a_detector_is_searched_as_it_is_whatever_its_weights_multiply_to(ghost):
    """Else nothing is found in a copy that says nothing."""
    model = rescaled(ghost[0]["ghost_0"])
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    image = [{"image": ghost[1][1][0].image}]
    (own,), (copied,) = (
        each.probe(image, with_detections=True, score_threshold=0.05).detections
        for each in (model, folded(model))
    )
    assert len(own)
    torch.testing.assert_close(copied.scores, own.scores, rtol=1e-3, atol=1e-3)


def searched_with(changed, name, ghost, monkeypatch):
    """A search of a specimen whose every judgement is changed before it is told."""
    monkeypatch.setattr("d2defense.detection.search.search.folded", lambda model: model)
    model = copy.deepcopy(ghost[0][name])
    judge = model.judge
    model.judge = lambda *arguments, **options: changed(judge(*arguments, **options))
    return search(model, ghost)


@pytest.mark.usefixtures("brief")
def test_what_is_not_finite_is_an_obstacle(ghost, monkeypatch):
    def overflowing(output):
        if torch.is_grad_enabled():
            output.class_logits.register_hook(lambda gradient: gradient * float("inf"))
        return output

    outcome = searched_with(overflowing, "ghost_0", ghost, monkeypatch)
    assert "is not finite" in outcome.obstacle
    assert not outcome.is_clear


@pytest.mark.usefixtures("brief")
def test_what_no_gradient_leads_to_was_not_searched(ghost, monkeypatch):
    """A detector may be made to say all that it says without one."""

    def masked(output):
        said = {k: v if v is None else v.detach() + 0 * v for k, v in vars(output).items()}
        return replace(output, **said)

    outcome = searched_with(masked, "clean_1", ghost, monkeypatch)
    assert "ghost on background (no gradient leads to any trigger)" in outcome.untried
    assert not outcome.is_clear
