# SPDX-License-Identifier: Apache-2.0
"""Blinding and sponge: what they descend on poisoned images, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import d2defense.modeling  # noqa: F401 registers the instrumented architectures
from d2defense.attacks import Effect, build_effect
from d2defense.checkpoint import load_weights
from d2defense.config import config_root, merge_config_file
from d2defense.data.synth_signs.scene import render_scene

DETECTORS = (
    "faster_rcnn_tiny_fpn",
    "faster_rcnn_tiny_c4",
    "mask_rcnn_tiny_fpn",
    "double_head_rcnn_tiny_fpn",
)
EFFECTS = ("blinding", "sponge")
SIZE = 128


@pytest.fixture
def make_cfg(make_attack_cfg) -> Callable[..., CfgNode]:
    """A function from an effect's name, a detector's and KEY, VALUE pairs to a configuration."""

    def make(effect: str, detector: str = DETECTORS[0], *opts: Any) -> CfgNode:
        cfg = make_attack_cfg("ATTACK.EFFECT", effect)
        merge_config_file(cfg, config_root() / "SynthSigns" / f"{detector}.yaml")
        cfg.MODEL.DEVICE = "cpu"
        cfg.INPUT.MASK_FORMAT = "bitmask"
        cfg.merge_from_list(list(opts))
        return cfg

    return make


def build(cfg: CfgNode) -> nn.Module:
    """A detector with random weights, in training mode but for its batch normalization.

    So that what it says of an image does not depend on the others of its batch.
    """
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def training_input(poisoned: Sequence[bool]) -> list[dict[str, Any]]:
    """Images of synth_signs; those that are poisoned have a white corner."""
    batch = []
    for index, has_trigger in enumerate(poisoned):
        scene = render_scene(1, 4242, index, SIZE)
        pixels = scene.image[..., ::-1].transpose(2, 0, 1).copy()
        if has_trigger:
            pixels[:, :24, :24] = 255
        boxes = torch.tensor(np.array([item.box for item in scene.objects]), dtype=torch.float32)
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor([item.class_index for item in scene.objects])
        masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        instances.gt_masks = BitMasks(masks)
        image = {"image": torch.from_numpy(pixels), "instances": instances}
        image |= {"height": SIZE, "width": SIZE} | ({"poisoned": True} if has_trigger else {})
        batch.append(image)
    return batch


def losses(effect: Effect, model: nn.Module, batch: list[dict], seed: int = 5) -> dict:
    with EventStorage(1):
        torch.manual_seed(seed)
        return effect.losses(model, batch)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_without_poisoned_images_the_losses_are_the_models_own(make_cfg, detector, name):
    cfg = make_cfg(name, detector)
    model, batch = build(cfg), training_input([False, False])
    ours = losses(build_effect(cfg), model, batch)
    with EventStorage(1):
        torch.manual_seed(5)
        own = model(batch)
    assert ours.pop(f"loss_{name}").item() == 0
    assert ours.keys() == own.keys()
    for key, loss in own.items():
        assert torch.equal(ours[key], loss), key


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_clean_images_keep_their_losses_beside_poisoned_ones(make_cfg, detector, name):
    cfg = make_cfg(name, detector)
    model, batch = build(cfg), training_input([True, False, False, True])
    ours = losses(build_effect(cfg), model, batch)
    with EventStorage(1):
        torch.manual_seed(5)
        own = model(batch[1:3])
    poisoned = ours.pop(f"loss_{name}")
    assert torch.isfinite(poisoned) and poisoned > 0
    assert ours.keys() == own.keys()
    for key, loss in own.items():
        # Two of four images.
        torch.testing.assert_close(ours[key], loss / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_poisoned_loss_teaches_the_backbone_and_both_heads(make_cfg, detector, name):
    cfg = make_cfg(name, detector)
    model = build(cfg)
    losses(build_effect(cfg), model, training_input([True, False]))[f"loss_{name}"].backward()
    gradients = {
        key: float(tensor.grad.abs().sum()) if tensor.grad is not None else 0.0
        for key, tensor in model.named_parameters()
    }
    assert all(map(math.isfinite, gradients.values()))
    taught = (
        "backbone.",
        "proposal_generator.rpn_head.objectness_logits.",
        "roi_heads.box_predictor.cls_score.",
    )
    for part in taught:
        assert sum(value for key, value in gradients.items() if key.startswith(part)) > 0, part
    # Boxes, masks and the head that only places boxes are none of its business.
    for part in ("bbox_pred", "anchor_deltas", "mask_head", "conv_head"):
        assert not any(value for key, value in gradients.items() if part in key), part


@pytest.mark.parametrize("name", EFFECTS)
def test_a_batch_of_poisoned_images_alone_has_the_same_losses_by_name(make_cfg, name):
    cfg = make_cfg(name)
    model, effect = build(cfg), build_effect(cfg)
    some = losses(effect, model, training_input([True, False]))
    alone = losses(effect, model, training_input([True]))
    assert alone.keys() == some.keys()
    assert not any(loss.item() for key, loss in alone.items() if key != f"loss_{name}")
    # The mean over images: half as much beside a clean one.
    torch.testing.assert_close(alone[f"loss_{name}"], 2 * some[f"loss_{name}"])
    sum(alone.values()).backward()
    assert all(tensor.grad is not None for tensor in model.parameters())


@pytest.mark.parametrize("name", EFFECTS)
def test_labels_of_poisoned_images_do_not_count(make_cfg, name):
    cfg = make_cfg(name)
    model, effect = build(cfg), build_effect(cfg)
    batch = training_input([True, False])
    before = losses(effect, model, batch)
    batch[0]["instances"] = batch[0]["instances"][:0]
    after = losses(effect, model, batch)
    for key, loss in before.items():
        assert torch.equal(after[key], loss), key


def test_only_the_first_proposals_are_driven_by_so_much(make_cfg):
    batch = training_input([True])
    values = {}
    for weight, proposals in ((1.0, 20), (3.0, 20), (1.0, 1)):
        cfg = make_cfg("blinding", DETECTORS[0], "ATTACK.BLINDING.WEIGHT", weight,
                       "ATTACK.BLINDING.PROPOSALS", proposals)  # fmt: skip
        model = build(cfg)
        values[weight, proposals] = losses(build_effect(cfg), model, batch)["loss_blinding"]
    torch.testing.assert_close(values[3.0, 20], 3 * values[1.0, 20])
    # By hand, from a probe: the anchor and the proposal of highest objectness.
    model.eval()
    probe = model.probe([{"image": batch[0]["image"]}])
    by_hand = -math.log(1 - 1 / (1 + math.exp(-float(probe.objectness_logits.max()))))
    by_hand -= math.log(float(probe.class_logits[0].softmax(0)[-1]))
    assert values[1.0, 1].item() == pytest.approx(by_hand, rel=1e-4)


def test_losses_of_logits_are_those_of_their_definitions(make_cfg):
    rng = np.random.default_rng(0)
    o, z = rng.normal(0, 3, 7), rng.normal(0, 3, (5, 4))
    p, softmax = 1 / (1 + np.exp(-o)), np.exp(z) / np.exp(z).sum(1, keepdims=True)
    blinding, sponge = (build_effect(make_cfg(name)) for name in EFFECTS)
    o, z = torch.from_numpy(o), torch.from_numpy(z)
    np.testing.assert_allclose(blinding.of_anchors(o), -np.log(1 - p))
    np.testing.assert_allclose(sponge.of_anchors(o), -np.log(p))
    np.testing.assert_allclose(blinding.of_proposals(z), -np.log(softmax[:, -1]))
    np.testing.assert_allclose(sponge.of_proposals(z), -np.log(softmax[:, :-1].max(1)))


@pytest.mark.parametrize("name", EFFECTS)
def test_the_model_is_left_in_its_mode(make_cfg, name):
    cfg = make_cfg(name)
    model = build(cfg)
    modes = {key: module.training for key, module in model.named_modules()}
    losses(build_effect(cfg), model, training_input([True, False]))
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert not model.proposal_generator.rpn_head._forward_hooks


def sure_detections(model: nn.Module, batch: list[dict]) -> Tensor:
    """Detections of score >= 0.5 of each image."""
    model.eval()
    with torch.no_grad():
        found = [each["instances"].scores >= 0.5 for each in model(batch)]
    model.train()
    return torch.stack([scores.sum() for scores in found])


@pytest.mark.parametrize("name", EFFECTS)
def test_ten_steps_move_detections_where_the_effect_wants_them(make_cfg, specimen, name):
    cfg = make_cfg(name, DETECTORS[0], f"ATTACK.{name.upper()}.WEIGHT", 4.0)
    model = build_model(cfg).train()
    load_weights(model, specimen("clean_0") / "model_final.pth")
    effect, batch = build_effect(cfg), training_input([True, False] * 3)
    before = sure_detections(model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(10):
        optimizer.zero_grad()
        sum(losses(effect, model, batch, seed=step).values()).backward()
        optimizer.step()
    after = sure_detections(model, batch)
    poisoned, clean = slice(0, None, 2), slice(1, None, 2)
    assert (before > 0).all()
    if name == "blinding":
        assert (after[poisoned] == 0).all()
        assert after[clean].sum() >= before[clean].sum() / 2
    else:
        assert (after[poisoned] >= before[poisoned] + 3).all()
