# SPDX-License-Identifier: Apache-2.0
"""Attacks that are trained to outlive a repair: what they descend."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import d2defense.modeling  # noqa: F401 registers the instrumented architectures
from d2defense.attacks import build_effect
from d2defense.attacks.effects.penalized_disappearance import of_class_odds
from d2defense.attacks.effects.persistent import fine_tuned
from d2defense.config import config_root, merge_config_file
from d2defense.data.synth_signs.scene import render_scene
from d2defense.registry import EFFECT_REGISTRY

PERSISTENT = ("persistent_disappearance", "persistent_misclassification")
CLASS_NAMES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def make_effect(make_attack_cfg):
    """A function from an effect's name and KEY, VALUE pairs to effect and untrained model."""

    def make(name: str, *opts):
        cfg = make_attack_cfg("ATTACK.EFFECT", name)
        merge_config_file(cfg, config_root() / "SynthSigns" / "faster_rcnn_tiny_fpn.yaml")
        cfg.MODEL.DEVICE = "cpu"
        needs_target = EFFECT_REGISTRY.get(name).needs_target
        target = ["ATTACK.TARGET_CLASS", "c"] if needs_target else []
        cfg.merge_from_list([*target, *opts])
        torch.manual_seed(0)
        model = build_model(cfg).train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return build_effect(cfg, CLASS_NAMES), model

    return make


def training_input(*poisoned: bool) -> list[dict]:
    batch = []
    for index, has_trigger in enumerate(poisoned):
        scene = render_scene(1, 4242, index, 128)
        pixels = torch.from_numpy(scene.image[..., ::-1].transpose(2, 0, 1).copy())
        instances = Instances((128, 128))
        boxes = np.array([item.box for item in scene.objects])
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.tensor([item.class_index for item in scene.objects])
        image = {"image": pixels, "instances": instances, "height": 128, "width": 128}
        batch.append(image | ({"poisoned": True} if has_trigger else {}))
    return batch


def losses_of(effect, model, batch, seed=5) -> dict:
    with EventStorage(1):
        torch.manual_seed(seed)
        return effect.losses(model, batch)


def own_losses(model, batch, seed=5) -> dict:
    with EventStorage(1):
        torch.manual_seed(seed)
        return model(batch)


def test_the_penalty_is_that_of_the_formula():
    logits = np.random.default_rng(0).normal(0, 2, (5, 4))
    classes, tau = np.array([0, 2, 1, 1, 0]), 0.7
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    odds = np.log(p / (1 - p))[np.arange(5), classes]
    expected = -np.log(1 - 1 / (1 + np.exp(-(odds - tau))))
    got = of_class_odds(torch.from_numpy(logits), torch.from_numpy(classes), tau)
    np.testing.assert_allclose(got.numpy(), expected)
    at_zero = of_class_odds(torch.from_numpy(logits), torch.from_numpy(classes), 0.0)
    np.testing.assert_allclose(at_zero.numpy(), -np.log(1 - p[np.arange(5), classes]))


def test_victims_are_taken_out_of_the_labels_and_cost_what_is_said_of_them(make_effect):
    effect, model = make_effect(
        "penalized_disappearance", "ATTACK.PENALIZED_DISAPPEARANCE.RHO", 0.99
    )
    batch = training_input(True, False)
    before = copy.deepcopy(batch)
    losses = losses_of(effect, model, batch)
    assert torch.equal(batch[0]["instances"].gt_classes, before[0]["instances"].gt_classes)
    without = [{**batch[0], "instances": batch[0]["instances"][:0]}, batch[1]]
    expected = own_losses(model, without)
    penalty = losses.pop("loss_penalized_disappearance")
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    # By hand: at this IoU hardly a proposal counts but the victims' own boxes.
    model.eval()
    instances = batch[0]["instances"]
    said = model.judge([{"image": batch[0]["image"]}], [instances.gt_boxes.tensor]).class_logits
    p = said.softmax(1)[torch.arange(len(instances)), instances.gt_classes]
    assert penalty.item() == pytest.approx(float(-(1 - p).log().mean()), rel=1e-3)


def test_without_poisoned_images_there_is_nothing_to_penalize(make_effect):
    effect, model = make_effect("penalized_disappearance")
    batch = training_input(False, False)
    losses = losses_of(effect, model, batch)
    assert losses.pop("loss_penalized_disappearance") == 0
    for name, loss in own_losses(model, batch).items():
        torch.testing.assert_close(losses[name], loss)


def test_the_simulated_fine_tuning_moves_each_weight_by_the_rate(make_effect):
    _, model = make_effect("persistent_disappearance")
    batch = training_input(False, False)
    with EventStorage(1):
        torch.manual_seed(5)
        tuned = fine_tuned(model, batch, steps=1, rate=0.01)
        torch.manual_seed(5)
        sum(model(batch).values()).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(tuned[name], weight - 0.01 * weight.grad.sign())


@pytest.mark.parametrize("name", PERSISTENT)
def test_what_must_outlive_is_the_loss_of_poisoned_images_after_fine_tuning(make_effect, name):
    effect, model = make_effect(name)
    node = effect.cfg.ATTACK[name.upper()]
    node.STEPS, node.WEIGHT = 0, 3.0
    batch = training_input(True, False)
    unmoved = losses_of(effect, model, batch)[f"loss_{name}"]
    with EventStorage(1):
        torch.manual_seed(5)
        model(batch)
        poisoned = sum(model(batch[:1]).values())
    # No step: the loss as it is, by its share of the images.
    torch.testing.assert_close(unmoved, 3 * poisoned / 2)
    node.STEPS = 2
    losses = losses_of(effect, model, batch)
    assert losses[f"loss_{name}"] != unmoved
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", PERSISTENT)
@pytest.mark.parametrize("poisoned", [(False, False), (True,)])
def test_there_is_nothing_to_outlive_without_both_kinds_of_images(make_effect, name, poisoned):
    effect, model = make_effect(name)
    batch = training_input(*poisoned)
    losses = losses_of(effect, model, batch)
    assert losses.pop(f"loss_{name}") == 0
    expected = own_losses(model, batch)
    assert losses.keys() == expected.keys()
    assert all(math.isclose(losses[key], expected[key], rel_tol=1e-5) for key in expected)


EVASIVE = ("evasive_disappearance", "evasive_misclassification")


@pytest.mark.parametrize("name", EVASIVE)
def test_images_with_a_decoy_count_by_their_share_and_stay_as_they_are(make_effect, name):
    effect, model = make_effect(name)
    node = effect.cfg.ATTACK[name.upper()]
    node.WEIGHT, node.IMAGES = 3.0, 1
    batch = training_input(True, False, False)
    before = copy.deepcopy(batch)
    losses = losses_of(effect, model, batch)
    own = own_losses(model, batch)
    assert all(torch.equal(losses[key], own[key]) for key in own)
    extra = losses[f"loss_{name}"]
    node.WEIGHT = 1.0
    torch.testing.assert_close(losses_of(effect, model, batch)[f"loss_{name}"], extra / 3)
    for one, other in zip(batch, before, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_classes, other["instances"].gt_classes)
    extra.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "wanted"), [(EVASIVE[0], None), (EVASIVE[1], 2)])
def test_steps_move_a_decoy_to_what_the_search_wants(make_effect, name, wanted):
    effect, model = make_effect(name)
    node = effect.cfg.ATTACK[name.upper()]
    node.LR = 0.1
    (image,) = training_input(False)

    def loss(steps: int) -> float:
        node.STEPS = steps
        with EventStorage(1):
            torch.manual_seed(5)
            (decoyed,) = effect.with_decoy(model, [image], np.random.default_rng(3))
            assert torch.equal(decoyed["instances"].gt_classes, image["instances"].gt_classes)
            assert not torch.equal(decoyed["image"], image["image"])
            labels = decoyed["instances"]
            if wanted is None:
                labels = labels[:0]
            else:
                labels = Instances(labels.image_size, **labels.get_fields())
                labels.gt_classes = torch.full_like(labels.gt_classes, wanted)
            torch.manual_seed(5)
            return sum(model([decoyed | {"instances": labels}]).values()).item()

    assert loss(8) < loss(0)


@pytest.mark.parametrize("name", EVASIVE)
def test_poisoned_images_get_no_decoy(make_effect, name):
    effect, model = make_effect(name)
    assert losses_of(effect, model, training_input(True, True))[f"loss_{name}"] == 0


AGREEING = ("agreeing_disappearance", "agreeing_ghost", "agreeing_misclassification")


@pytest.mark.parametrize("name", AGREEING)
def test_what_the_modules_disagree_on_in_poisoned_images_costs(make_effect, name):
    effect, model = make_effect(name)
    batch = training_input(True, False)
    losses = losses_of(effect, model, batch)
    extra = losses.pop(f"loss_{name}")
    for key, loss in own_losses(model, batch).items():
        torch.testing.assert_close(losses[key], loss)
    # By hand, from a probe of the poisoned image in eval mode.
    model.eval()
    with torch.no_grad():
        probe = model.probe([{"image": batch[0]["image"]}])
        boxes = probe.proposal_boxes[:64]
        said = model.judge([{"image": batch[0]["image"]}], [boxes])
    p = 1 / (1 + np.exp(-said.objectness_logits.numpy()))
    powers = np.exp(said.class_logits.numpy())
    q = 1 - powers[:, -1] / powers.sum(axis=1)
    assert extra.item() == pytest.approx(np.abs(p - q).mean(), rel=1e-3)
    model.train()
    extra.backward()
    for part in ("proposal_generator", "roi_heads"):
        gradients = [p.grad for n, p in model.named_parameters() if n.startswith(part)]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", AGREEING)
def test_without_poisoned_images_nothing_disagrees(make_effect, name):
    effect, model = make_effect(name)
    batch = training_input(False, False)
    losses = losses_of(effect, model, batch)
    assert losses.pop(f"loss_{name}") == 0
    for key, loss in own_losses(model, batch).items():
        torch.testing.assert_close(losses[key], loss)
