# SPDX-License-Identifier: Apache-2.0
"""Which targets are searched for, and how."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2defense.checkpoint.specimens import find_specimen
from d2defense.data import DatasetSource
from d2defense.detection import CleanImage, ScanImages, ScanSettings, open_subject
from d2defense.detection.scale import LogitScale
from d2defense.detection.search import SearchOutcome, with_search
from d2defense.detection.search.arms import Arm, Goal, all_goals, starts
from d2defense.detection.search.crops import View
from d2defense.detection.search.optimise import arm_loss, wanted_probability
from d2defense.detection.search.race import Race, RaceSettings, Scouted, scout_of
from d2defense.detection.search.targets import any_class_loss, class_probabilities
from d2defense.detection.verdict import CLEAN, Verdict
from d2defense.modeling import RegionOutput

TWO = RaceSettings(
    scouted=2, scout_steps=8, targets=1, heat_steps=1, finalists=1, steps=1, families=("patch",)
)


@pytest.fixture(scope="module")
def race_of(signs_cache):
    """A function from a specimen to the race of its arms against ``clean_1``."""
    settings = ScanSettings(max_images=16)
    images = ScanImages.load(DatasetSource("synth_signs_defender"), settings)

    def race(name: str) -> tuple[Race, list[str]]:
        models, seen = [], []
        for each in (name, "clean_1"):
            subject = open_subject(find_specimen(each), images, settings, "cpu")
            models.append(subject.model.requires_grad_(False))
            seen = [subject.images[index] for index in range(len(subject.images))]
        scales = [LogitScale.of(each, seen) for each in models]
        references = [(models[1], scales[1])]
        return Race(models[0], references, seen, scales[0], TWO, "BGR"), images.class_names

    return race


#: Two objects and a window of the background.
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 40, 15, 50]])


def view_of(regions: Tensor, classes: list[int]) -> View:
    """A view of some regions, of which the first are objects."""
    image = CleanImage(
        "", torch.zeros(3, 64, 64), regions[: len(classes)], torch.tensor(classes), seed=0
    )
    return View(image, torch.zeros(1, 4), regions)


def goal_of(effect: str) -> Goal:
    """The first goal of an effect on two classes."""
    return next(goal for goal in all_goals(["stop", "yield"]) if goal.effect.name == effect)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ghost_0", "misclassification_0"])
def test_of_many_classes_the_target_is_scouted(race_of, name):
    race, names = race_of(name)
    finalists = race.run(names)
    effect = name.removesuffix("_0")
    (scouted,) = (each for each in race.scouted if each.effect == effect)
    assert len(scouted.classes) == 2
    assert "stop" in scouted.classes
    assert scouted.of == 7
    best = next(each for each in finalists if each.arm.goal.effect.name == effect)
    assert names[best.arm.goal.target_class] == "stop"


@pytest.mark.parametrize("placement", ["background", "objects"])
def test_classes_are_compared_by_a_patch_that_is_neither_small_nor_large(placement):
    """By one of 10 %, the search missed the ghosts of a RetinaNet."""
    assert scout_of(starts(placement)).name == "patch of 20 %"
    assert scout_of(starts(placement, ("overlay",))).name == "overlay of 32/255"


def test_in_corners_classes_are_compared_by_a_patch():
    """By an overlay, which nothing reacts to, they would all look alike."""
    assert scout_of(starts("corners")).name == "patch of 100 %"


def test_a_clean_verdict_says_that_not_all_classes_were_tried():
    bank = Verdict(CLEAN, "", 0.0, (0.0, 0.0), 0.1, 0.5)
    all_of_them = Scouted("ghost", "background", ("car", "bus"), 2)
    some = Scouted("misclassification", "objects", ("car",), 80)
    reason = with_search(bank, SearchOutcome(scouted=(all_of_them,))).reason
    assert "classes" not in reason
    reason = with_search(bank, SearchOutcome(scouted=(all_of_them, some))).reason
    assert "of 80 classes, the 1 likeliest were tried" in reason


def test_a_class_is_measured_over_objects_of_others():
    logits = torch.tensor([[4.0, 0, 0], [0, 3, 0], [1, 0, 2]], requires_grad=True)
    views, goal = [view_of(BOXES, [0, 1])], goal_of("ghost")
    output = RegionOutput(torch.zeros(3), logits)
    shares = logits.softmax(1).detach()
    expected = torch.stack([shares[1:, 0].mean(), shares[[0, 2], 1].mean()])
    torch.testing.assert_close(class_probabilities(output, views, goal).detach(), expected)
    loss = any_class_loss(output, views, goal, torch.tensor([False, True]))
    torch.testing.assert_close(loss.detach(), -shares[[0, 2], 1].log().mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[1].abs().max() == 0
    assert gradient[0, 1] < 0


@pytest.mark.parametrize(("effect", "counts"), [("ghost", True), ("misclassification", False)])
def test_a_ghost_is_wanted_where_it_is_to_be(effect, counts):
    goal = goal_of(effect)
    arm, views = Arm(goal, starts(goal.placement)[0]), [view_of(BOXES, [0, 1])]
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    target = goal.target_class
    overlap = torch.full((3, 2), 0.2)
    here, elsewhere = overlap.clone(), overlap.clone()
    here[:, target], elsewhere[:, 1 - target] = 0.7, 0.7
    plain, better, other = (
        arm_loss(RegionOutput(None, logits, each), arm, views)
        for each in (overlap, here, elsewhere)
    )
    assert (better < plain) == counts
    assert other == plain
    of_regions = F.cross_entropy(logits, torch.full((3,), target))
    torch.testing.assert_close(arm_loss(RegionOutput(None, logits), arm, views), of_regions)


def test_a_scene_ghost_may_be_anywhere_on_an_image():
    goal = goal_of("scene_ghost")
    arm = Arm(goal, starts(goal.placement)[0])
    views = [view_of(BOXES, []), view_of(BOXES[:2], [])]
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    output, target = RegionOutput(None, logits), goal.target_class
    shares = logits.softmax(1).detach()
    likeliest = torch.stack([shares[:3].amax(0), shares[3:].amax(0)]).mean(0)[:2]
    torch.testing.assert_close(class_probabilities(output, views, goal).detach(), likeliest)
    assert wanted_probability(output, arm, views) == pytest.approx(float(likeliest[target]))
    # The soft minimum of cross entropies: it pulls most at the region that is nearest to it.
    loss = arm_loss(output, arm, views)
    sums = torch.stack([shares[:3, target].sum(), shares[3:, target].sum()])
    torch.testing.assert_close(loss.detach(), -sums.log().mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    pulls = -gradient[:3, target] / (1 - shares[:3, target])
    assert int(pulls.argmax()) == int(shares[:3, target].argmax())
