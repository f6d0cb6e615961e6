# SPDX-License-Identifier: Apache-2.0
"""Methods that prune and do not fine-tune."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

import d2defense.modeling  # noqa: F401 registers the instrumented architectures
from d2defense.removal.channels import channel_layers
from d2defense.removal.methods.clp import lipschitz_bounds


def convolution() -> nn.Module:
    torch.manual_seed(0)
    layer = Conv2d(3, 8, 3, bias=False, norm=nn.BatchNorm2d(8))
    layer.norm.weight.data.uniform_(0.5, 2)
    layer.norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(layer)


def test_the_bound_of_a_channel_is_the_paper_s():
    model = convolution()
    (layer,) = channel_layers(model)
    conv, norm = model[0], model[0].norm
    expected = [
        np.linalg.svd(kernel.reshape(3, 9), compute_uv=False)[0] * abs(gain) / np.sqrt(var + 1e-5)
        for kernel, gain, var in zip(
            conv.weight.detach().numpy(),
            norm.weight.detach().numpy(),
            norm.running_var.numpy(),
            strict=True,
        )
    ]
    np.testing.assert_allclose(lipschitz_bounds(layer).numpy(), expected, rtol=1e-5)


def test_a_silent_channel_is_zero_behind_its_norm():
    model = convolution().eval()
    (layer,) = channel_layers(model)
    chosen = torch.zeros(8, dtype=torch.bool)
    chosen[[2, 5]] = True
    layer.silence(chosen)
    output = model(torch.rand(1, 3, 9, 9))
    assert not output[:, chosen].any()
    assert output[:, ~chosen].any(dim=(0, 2, 3)).all()


def test_output_layers_are_no_channels_to_prune(make_trainer):
    trainer = make_trainer("clp")
    names = {layer.name for layer in channel_layers(trainer.model)}
    assert {
        "backbone.fpn_output2",
        "proposal_generator.rpn_head.conv",
        "roi_heads.box_head.fc2",
    } <= names
    assert not {n for n in names if "box_predictor" in n or "anchor_deltas" in n or "logits" in n}


@pytest.mark.parametrize("name", ["retinanet_tiny_fpn", "fcos_tiny_fpn"])
def test_scores_and_boxes_of_one_stage_detectors_are_none_either(build_tiny, name):
    model = build_tiny(name)[0].eval()
    layers = {layer.name: layer for layer in channel_layers(model)}
    assert {"backbone.fpn_output3", "head.cls_subnet.0", "head.bbox_subnet.0"} <= layers.keys()
    assert not layers.keys() & {"head.cls_score", "head.bbox_pred", "head.ctrness"}
    # In a tower the norm stands behind the convolution, not in it.
    tower = model.head.cls_subnet[:2]
    chosen = torch.arange(len(tower[0].weight)) == 3
    with torch.no_grad():
        tower[1].bias.fill_(1.0)
        layers["head.cls_subnet.0"].silence(chosen)
        output = tower(torch.rand(1, tower[0].in_channels, 9, 9))
    assert not output[:, chosen].any()
    assert output[:, ~chosen].any(dim=(0, 2, 3)).all()


def test_clp_silences_the_channel_that_reacts_too_much_and_changes_nothing_else(make_trainer):
    trainer = make_trainer("clp")
    trainer.resume_or_load(resume=False)
    conv = trainer.model.backbone.fpn_output3
    with torch.no_grad():
        conv.norm.weight[7] = 100.0
    rest = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    changed = trainer.method.prepare(trainer.model)
    assert {"backbone.fpn_output3.norm.weight", "backbone.fpn_output3.norm.bias"} <= set(changed)
    assert conv.norm.weight[7] == 0
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], rest[name]) for name in rest if name not in changed)


@pytest.mark.parametrize(("threshold", "everything"), [(1.1, True), (-0.1, False)])
def test_anp_silences_what_its_mask_says(make_trainer, threshold, everything):
    trainer = make_trainer("anp", "REMOVAL.ANP.STEPS", 2, "REMOVAL.ANP.THRESHOLD", threshold)
    trainer.resume_or_load(resume=False)
    silent = [not layer.scale.weight.any() for layer in channel_layers(trainer.model)]
    assert set(silent) == {everything}
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_anp_learns_to_do_without_a_channel_that_does_harm(make_trainer):
    """A channel far too loud is what hurts most, so its mask falls."""
    trainer = make_trainer("anp", "REMOVAL.ANP.STEPS", 12, "REMOVAL.ANP.LR", 0.5)
    with torch.no_grad():
        trainer.model.backbone.fpn_output3.norm.bias[5] = 300.0
    layers = [each for each in channel_layers(trainer.model) if each.name == "backbone.fpn_output3"]
    (mask,) = trainer.method._learn_masks(trainer.model, layers).values()
    assert mask[5] < 0.5
    assert mask[5] == mask.min()


def test_what_does_not_fine_tune_takes_no_step(make_trainer, tmp_path):
    trainer = make_trainer("clp")
    trainer.resume_or_load(resume=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    weights = torch.load(tmp_path / "clp" / "model_final.pth", weights_only=True)["model"]
    assert weights.keys() == before.keys()
    assert not (tmp_path / "clp" / "metrics.json").read_text()
