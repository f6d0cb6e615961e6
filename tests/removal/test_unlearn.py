# SPDX-License-Identifier: Apache-2.0
"""Ours: what is searched for while it fine-tunes, and what images show."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from d2defense.detection.search import Arm, starts
from d2defense.removal.inputs import patched

SHORT = ("REMOVAL.UNLEARN.TRIGGERS", 3, "REMOVAL.UNLEARN.STEPS", 2, "REMOVAL.UNLEARN.EVERY", 1)
AS_TOLD = ("REMOVAL.UNLEARN.OTHER_BUDGETS", 0.0)


@pytest.fixture
def trainer(make_trainer):
    """One that has its first triggers."""
    goals = ("REMOVAL.UNLEARN.GOALS", ("ghost background c2",))
    trainer = make_trainer("unlearn", *SHORT, *AS_TOLD, *goals)
    trainer.resume_or_load(resume=False)
    return trainer


def search(trainer):
    return trainer.method._search


def batch_of(trainer):
    return next(iter(trainer.build_train_loader(trainer.cfg)))


def test_what_a_scan_has_found_comes_first(trainer):
    search(trainer).before_train()
    arms = [state.arm for state in search(trainer).found]
    assert {arm.goal.kind for arm in arms} == {("ghost", "background")}
    # All budgets in turn, as none was named.
    assert [arm.start for arm in arms] == starts("background")[:3]
    # As many steps toward the class that is the easiest as then toward the goal.
    assert [state.steps for state in search(trainer).found] == [4, 4, 4]


def test_most_searches_are_for_what_a_scan_has_found_by_its_budget(make_trainer, monkeypatch):
    goals = ("disappearance objects -: patch of 20 %", "no such goal")
    trainer = make_trainer("unlearn", *SHORT, *AS_TOLD, "REMOVAL.UNLEARN.GOALS", goals)
    trainer.resume_or_load(resume=False)
    searched, looked_for = search(trainer), []
    searched.before_train()
    told = searched.found[-1]
    assert {state.arm.name for state in searched.found} == {
        "disappearance: patch of 20 % on objects"
    }
    other = copy.copy(told)
    other.arm = next(
        Arm(goal, starts(goal.placement)[0])
        for goal in searched._goals
        if goal.effect.name == "misclassification"
    )
    told.effect, other.effect = 0.1, 0.9
    monkeypatch.setattr(searched, "_advance", lambda state, rng: looked_for.append(state.arm.name))
    rng = np.random.default_rng(0)
    for call in (lambda: searched._begin(rng, None), lambda: searched._improve(rng)):
        looked_for.clear()
        for _ in range(40):
            # What is improved is mostly one of them, though another is obeyed more.
            searched.found.clear()
            searched.found.extend([other, told])
            call()
        assert 20 < sum(name == told.arm.name for name in looked_for) < 40


def test_what_was_found_by_one_budget_is_searched_for_by_others_too(make_trainer):
    some = ("REMOVAL.UNLEARN.TRIGGERS", 30, "REMOVAL.UNLEARN.STEPS", 1)
    told = ("REMOVAL.UNLEARN.GOALS", ("disappearance objects -: patch of 20 %",))
    trainer = make_trainer("unlearn", *some, *told)
    trainer.resume_or_load(resume=False)
    search(trainer).before_train()
    arms = [state.arm for state in search(trainer).found]
    assert {arm.goal.effect.name for arm in arms} == {"disappearance"}
    budgets = [arm.start.name for arm in arms]
    assert len(set(budgets)) > 2
    assert 15 < budgets.count("patch of 20 %") < 28


@pytest.mark.parametrize("told", ["ghost background c2", "scene_ghost other_corners c2"])
def test_ghosts_are_searched_for_as_those_of_the_easiest_class(make_trainer, told):
    """One class gets a higher score everywhere: triggers go to it, whichever was asked for."""
    trainer = make_trainer("unlearn", *SHORT, "REMOVAL.UNLEARN.GOALS", (told,))
    trainer.resume_or_load(resume=False)
    predictor = trainer.model.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        predictor.weight.zero_()
        predictor.bias.zero_()[1] = 3
    search(trainer).before_train()
    goals = [state.arm.goal for state in search(trainer).found]
    assert {goal.target_class for goal in goals} == {1}
    assert {" ".join(goal.kind) for goal in goals} == {told.removesuffix(" c2")}


def test_a_trigger_goes_on_the_image_and_the_labels_stay(trainer):
    search(trainer).before_train()
    image = batch_of(trainer)[0]
    before = copy.deepcopy(image)
    shown = search(trainer).stamped(image).image
    assert torch.equal(image["image"], before["image"])
    assert shown["image"].dtype == image["image"].dtype
    assert not torch.equal(shown["image"], image["image"])
    assert shown["instances"] is image["instances"]
    assert torch.equal(shown["instances"].gt_boxes.tensor, before["instances"].gt_boxes.tensor)


def test_what_a_trigger_is_to_change_lies_where_it_is_or_on_objects(trainer):
    """A ghost's windows bear it: there something changes, and elsewhere nothing does."""
    search(trainer).before_train()
    image = batch_of(trainer)[0]
    shown = search(trainer).stamped(image)
    changed = (shown.image["image"] != image["image"]).any(dim=0)
    assert len(shown.regions) > 0 and changed.any()
    for x1, y1, x2, y2 in shown.regions.round().int().tolist():
        assert changed[y1:y2, x1:x2].any()
        changed[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    assert not changed.any()


def test_the_detector_stands_still_while_it_is_searched_and_learns_again_after(trainer):
    trainer.model.train()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    search(trainer).before_train()
    assert trainer.model.training
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_searches_go_on_as_training_does(trainer):
    search(trainer).before_train()
    first = [(id(state), state.steps) for state in search(trainer).found]
    trainer.train()
    found = search(trainer).found
    assert len(found) == 3
    assert [(id(state), state.steps) for state in found] != first


def test_the_teacher_sees_images_as_they_are_whatever_the_detector_sees(make_trainer, monkeypatch):
    shares = ("REMOVAL.UNLEARN.FOUND_SHARE", 0.5, "REMOVAL.UNLEARN.PATCH_SHARE", 0.5)
    trainer = make_trainer("unlearn", *SHORT, *shares)
    trainer.resume_or_load(resume=False)
    search(trainer).before_train()
    method, model, batch = trainer.method, trainer.model.train(), batch_of(trainer)
    taught, learnt = [], []
    loss, own = method._distillation.loss, model.losses_and_features
    monkeypatch.setattr(
        method._distillation,
        "loss",
        lambda model, images, *others: taught.extend(images) or loss(model, images, *others),
    )
    monkeypatch.setattr(
        model, "losses_and_features", lambda images: learnt.extend(images) or own(images)
    )
    with EventStorage(0):
        losses = method.losses(model, batch)
    assert losses["loss_distillation"] > 0
    assert len(learnt) == len(taught) == len(batch)
    for image, seen, shown in zip(batch, taught, learnt, strict=True):
        assert torch.equal(seen["image"], image["image"])
        assert shown["instances"] is image["instances"]
    assert any(
        not torch.equal(shown["image"], image["image"])
        for image, shown in zip(batch, learnt, strict=True)
    )


def test_images_bear_triggers_of_families_that_are_not_searched(trainer):
    method = trainer.method
    batch = batch_of(trainer)
    seen = set()
    for image in batch * 4:
        shown = method._drawn(image)
        assert shown["image"].shape == image["image"].shape
        assert shown["instances"] is image["instances"]
        seen.add(bool((shown["image"] != image["image"]).any()))
    assert True in seen


def test_patches_lie_where_nothing_is_too_and_nothing_is_added_there(make_trainer):
    every = ("REMOVAL.PATCH_AUGMENTATION.IMAGE_SHARE", 1.0)
    every += ("REMOVAL.PATCH_AUGMENTATION.OBJECT_SHARE", 1.0)
    trainer = make_trainer("unlearn", *SHORT, *every)
    trainer.resume_or_load(resume=False)
    outside = 0
    for image in batch_of(trainer) * 4:
        shown = patched(image, trainer.method._patches, trainer.cfg)
        assert shown["instances"] is image["instances"]
        changed = (shown["image"] != image["image"]).any(dim=0)
        for x1, y1, x2, y2 in image["instances"].gt_boxes.tensor.round().int().tolist():
            changed[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        outside += int(changed.sum())
    assert outside > 0


def test_the_trigger_that_is_obeyed_most_is_improved_and_lives_longest(trainer):
    search(trainer).before_train()
    # All of one goal, and some from one start.
    states = list(search(trainer).found)
    states[1].effect = 2.0
    search(trainer)._improve(np.random.default_rng(0))
    found = search(trainer).found
    assert len(found) == 3
    assert found[-1] is states[1] and found[-1].steps == 6
    assert found[0] is states[0] and found[1] is states[2]
