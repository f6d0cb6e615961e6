# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from d2defense.modeling import resettable_modules
from d2defense.removal import reset_modules

DETECTORS = (
    "faster_rcnn_tiny_c4",
    "faster_rcnn_tiny_fpn",
    "mask_rcnn_tiny_fpn",
    "double_head_rcnn_tiny_fpn",
)


@pytest.fixture
def cfg(make_tiny_cfg):
    return make_tiny_cfg()


@pytest.fixture
def model(cfg):
    """A detector in which every tensor, buffers too, is unlike a fresh one."""
    model = build_model(cfg)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    return model


def copy_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "modules", [["rpn"], ["box_head"], ["box_predictor"], ["box_head", "box_predictor"], []]
)
def test_exactly_the_tensors_of_the_modules_are_replaced(model, cfg, modules):
    prefixes = tuple(p for module in modules for p in resettable_modules(model)[module])
    before = copy_of(model)
    names = reset_modules(model, cfg, modules, seed=0)
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == names
    assert names == [name for name in before if prefixes and name.startswith(prefixes)]
    assert bool(names) == bool(modules)


@pytest.mark.parametrize("name", DETECTORS)
def test_of_every_detector_every_group_is_replaced_alone(build_tiny, name):
    model, cfg = build_tiny(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    for group, prefixes in resettable_modules(model).items():
        before = copy_of(model)
        reset_modules(model, cfg, [group], seed=0)
        after = model.state_dict()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == {key for key in before if key.startswith(prefixes)}


def test_the_seed_decides(model, cfg):
    def reset(seed: int) -> torch.Tensor:
        reset_modules(model, cfg, ["box_head"], seed)
        return model.state_dict()["roi_heads.box_head.fc1.weight"].clone()

    first = reset(1)
    assert not torch.equal(reset(2), first)
    assert torch.equal(reset(1), first)


def test_the_fresh_values_are_those_of_detectron2(model, cfg):
    """FastRCNNOutputLayers starts with normal weights of deviation 0.01 and zero biases."""
    reset_modules(model, cfg, ["box_predictor"], seed=0)
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert predictor.cls_score.weight.mean().item() == pytest.approx(0, abs=0.002)
    assert not predictor.cls_score.bias.any()


def test_unknown_modules_change_nothing(model, cfg):
    before = copy_of(model)
    with pytest.raises(ValueError, match="no module group neck"):
        reset_modules(model, cfg, ["rpn", "neck"], seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
