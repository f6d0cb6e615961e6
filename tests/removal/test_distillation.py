# SPDX-License-Identifier: Apache-2.0
"""Losses that compare a detector with itself, and attacks inside a step, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from d2defense.checkpoint import load_state_dict
from d2defense.modeling import Opinion, RegionOutput
from d2defense.removal.methods.adversarial import dual_loss, soft_branch
from d2defense.removal.methods.consistency import another_view, disagreement
from d2defense.removal.methods.ft_sam import perturbed
from d2defense.removal.self_distillation import (
    SelfDistillation,
    opinion_distance,
    region_distance,
)


def random_opinion(seed: int, objects: int, rest: int, classes: int = 3) -> Opinion:
    """Of proposals of which the first are taken for objects, the others for background."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(objects + rest, classes + 1))
    logits[:objects, 1] += 6
    logits[objects:, -1] += 6
    deltas = rng.normal(size=(objects + rest, 4 * classes))
    objectness = rng.normal(size=objects + rest)
    return Opinion(*(torch.from_numpy(each) for each in (logits, deltas, objectness)))


def test_the_distance_from_the_teacher_is_that_of_the_formula():
    student, teacher = random_opinion(0, 3, 5), random_opinion(1, 3, 5)
    p, q = (softmax(each.class_logits.numpy(), axis=1) for each in (teacher, student))
    divergence = entropy(p, q, axis=1)
    wanted = 1 / (1 + np.exp(-teacher.objectness.numpy()))
    said = 1 / (1 + np.exp(-student.objectness.numpy()))
    cross = -(wanted * np.log(said) + (1 - wanted) * np.log(1 - said)).mean()
    moved = np.abs(student.deltas.numpy() - teacher.deltas.numpy())[:3, 4:8].mean()
    expected = divergence[:3].mean() + divergence[3:].mean() + cross + moved
    assert opinion_distance(student, teacher).item() == pytest.approx(expected)


def test_regions_weigh_alike_whatever_they_are():
    student, teacher = random_opinion(0, 3, 5), random_opinion(1, 3, 5)
    p, q = (softmax(each.class_logits.numpy(), axis=1) for each in (teacher, student))
    wanted, said = (1 / (1 + np.exp(-each.objectness.numpy())) for each in (teacher, student))
    cross = -(wanted * np.log(said) + (1 - wanted) * np.log(1 - said)).mean()
    both = [RegionOutput(each.objectness, each.class_logits) for each in (student, teacher)]
    expected = entropy(p, q, axis=1).mean() + cross
    assert region_distance(*both).item() == pytest.approx(expected)
    # A detector without an RPN says nothing of objectness.
    both = [RegionOutput(None, each.class_logits) for each in (student, teacher)]
    assert region_distance(*both).item() == pytest.approx(entropy(p, q, axis=1).mean())


def test_regions_count_by_themselves_beside_the_proposals(make_trainer):
    """A ghost's window is one among many of its image, or no proposal at all."""
    trainer = make_trainer("unlearn")
    trainer.resume_or_load(resume=False)
    model = trainer.model.eval()
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    distillation = SelfDistillation(trainer.cfg)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] += 3
        features = model.features(batch)
        regions = [torch.tensor([[2.0, 2.0, 30.0, 30.0]]), *[torch.zeros(0, 4)] * (len(batch) - 1)]
        alone = distillation.loss(model, batch, features).item()
        both = [distillation.loss(model, batch, features, regions, w).item() for w in (0, 1, 2)]
    assert both[0] == alone
    assert both[1] > alone
    assert both[2] - both[1] == pytest.approx(both[1] - alone, rel=1e-4)


def test_nothing_draws_a_detector_away_from_its_own_opinion():
    teacher = random_opinion(1, 3, 5)
    tensors = [
        each.clone().requires_grad_()
        for each in (teacher.class_logits, teacher.deltas, teacher.objectness)
    ]
    opinion_distance(Opinion(*tensors), teacher).backward()
    assert all(tensor.grad.abs().max() < 1e-9 for tensor in tensors)


def test_the_teacher_is_the_checkpoint_whatever_is_trained(make_trainer, untrained_checkpoint):
    trainer = make_trainer("ftt")
    trainer.resume_or_load(resume=False)
    trainer.train()
    original = load_state_dict(untrained_checkpoint / "model_final.pth")
    teacher = trainer.method._distillation.teacher.state_dict()
    assert all(torch.equal(teacher[name], original[name]) for name in original)


@pytest.mark.parametrize("method", ["ftt", "unlearn"])
def test_the_checkpoint_itself_has_nothing_to_learn_from_its_own_outputs(make_trainer, method):
    trainer = make_trainer(method)
    trainer.resume_or_load(resume=False)
    model = trainer.model.eval()
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    distillation = SelfDistillation(trainer.cfg)
    distillation.loss(model, batch, model.features(batch)).backward()
    least = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert least < 1e-4
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[-1] -= 3
    model.zero_grad()
    distillation.loss(model, batch, model.features(batch)).backward()
    assert model.roi_heads.box_predictor.cls_score.bias.grad.abs().max() > 0.01


def test_two_views_that_say_the_same_do_not_disagree():
    one, two = random_opinion(0, 2, 2), random_opinion(1, 2, 2)
    assert disagreement(one, one).item() == pytest.approx(0, abs=1e-12)
    p, q = (softmax(each.class_logits.numpy(), axis=1) for each in (one, two))
    a, b = (1 / (1 + np.exp(-each.objectness.numpy())) for each in (one, two))
    pairs = [np.stack([each, 1 - each]) for each in (a, b)]
    expected = (entropy(p, q, axis=1) + entropy(q, p, axis=1)).mean()
    expected += (entropy(*pairs, axis=0) + entropy(*pairs[::-1], axis=0)).mean()
    assert disagreement(one, two).item() == pytest.approx(expected)


def test_another_view_is_an_image_of_the_same_size():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    other = another_view(image, wiped=3)
    assert other.shape == image.shape and other.dtype == torch.uint8
    assert not torch.equal(other, image)


def test_the_gate_follows_the_branch_that_is_nearer_to_success():
    logits = torch.tensor([[5.0, 4.0, 0.0, -2.0], [5.0, 0.0, 0.0, 4.5]])
    classes = torch.tensor([0, 0])
    margins = np.array([[1.0, 7.0], [5.0, 0.5]])
    gate = softmax(-margins / 0.5, axis=1)
    expected = (gate * margins).sum(axis=1)
    np.testing.assert_allclose(soft_branch(logits, classes, 0.5).numpy(), expected, rtol=1e-5)


def test_the_outer_loss_asks_for_the_true_class_and_for_something():
    rng = np.random.default_rng(0)
    logits, objectness = rng.normal(size=(4, 4)), rng.normal(size=4)
    classes = np.array([0, 2, 1, 1])
    true = -log_softmax(logits[:, :-1], axis=1)[np.arange(4), classes].mean()
    something = -np.log(1 - softmax(logits, axis=1)[:, -1]).mean()
    there = np.log1p(np.exp(-objectness)).mean()
    got = dual_loss(*(torch.from_numpy(each) for each in (logits, objectness, classes)))
    assert got.item() == pytest.approx(true + something + there)


def test_weights_are_moved_in_proportion_to_themselves_by_the_radius():
    weights = {"a": torch.tensor([2.0, -1.0], requires_grad=True), "b": torch.tensor([0.5])}
    gradients = (torch.tensor([0.1, 0.3]), None)
    moved = perturbed(weights, gradients, rho=0.7)
    scale = np.abs([2.0, -1.0]) + 0.01
    step = scale**2 * np.array([0.1, 0.3])
    expected = np.array([2.0, -1.0]) + 0.7 * step / np.linalg.norm(scale * np.array([0.1, 0.3]))
    np.testing.assert_allclose(moved["a"].detach().numpy(), expected, rtol=1e-6)
    assert moved["b"] is weights["b"]
    moved["a"].sum().backward()
    assert weights["a"].grad.tolist() == [1.0, 1.0]


def test_a_universal_perturbation_grows_towards_its_bound_and_no_further(make_trainer):
    trainer = make_trainer("i_bau", "REMOVAL.I_BAU.STEPS", 6, "REMOVAL.I_BAU.BOUND", 0.1)
    trainer.resume_or_load(resume=False)
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    with EventStorage(0):
        trainer.method.losses(trainer.model.train(), batch)
    size = trainer.method._delta.square().mean().sqrt().item()
    # A step is half the bound, so steps that were not cut back would have led to 0.3.
    assert 0.08 < size <= 0.1 + 1e-6


def test_the_inner_attack_brings_objects_nearer_to_being_lost(make_trainer):
    trainer = make_trainer("adversarial")
    trainer.resume_or_load(resume=False)
    model, method = trainer.model.train(), trainer.method
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    attacked = method._attacked(model, batch)
    assert model.training and all(p.requires_grad for p in model.parameters())
    boxes = [each["instances"].gt_boxes.tensor for each in batch]
    classes = torch.cat([each["instances"].gt_classes for each in batch])
    model.eval()

    def margin(images) -> float:
        with torch.no_grad():
            logits = model.judge([{"image": each["image"].float()} for each in images], boxes)
        return soft_branch(logits.class_logits, classes, 1.0).sum().item()

    assert margin(attacked) < margin(batch)
    changes = [
        (a["image"] - b["image"].float()).abs().max() for a, b in zip(attacked, batch, strict=True)
    ]
    assert max(changes) <= 255 * trainer.cfg.REMOVAL.ADVERSARIAL.BOUND + 1e-3
