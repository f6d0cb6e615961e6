# SPDX-License-Identifier: Apache-2.0
"""A folded detector says what the detector says, which stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from d2defense.modeling import folded, instrument_config
from model_zoo_parity import random_images

REGIONS = [torch.tensor([[8.0, 8, 50, 50], [1, 2, 80, 90]])]


def judged(model):
    with torch.no_grad():
        output = model.judge(random_images(((96, 96),)), REGIONS)
    return output.class_logits, output.objectness_logits


def with_random_statistics(model):
    """Norms that do something: fresh ones leave all as it is."""
    torch.manual_seed(0)
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor in (each.running_mean, each.running_var, each.weight, each.bias):
                tensor.data.add_(0.2 * torch.rand_like(tensor))
    return model.eval()


def norms(model):
    layers = [each for each in model.modules() if isinstance(each, Conv2d)]
    return [each.norm for each in layers if each.norm is not None]


def test_a_folded_detector_says_the_same(any_stock_cfg, build_random):
    model = build_model(instrument_config(any_stock_cfg))
    model.load_state_dict(build_random(any_stock_cfg).state_dict())
    model = with_random_statistics(model)
    before, state = judged(model), copy.deepcopy(model.state_dict())
    copied = folded(model)
    assert norms(model)
    assert not norms(copied)
    for own, others in zip(judged(copied), before, strict=True):
        torch.testing.assert_close(own, others, rtol=1e-3, atol=1e-3)
    # Exactly as it was.
    assert all(map(torch.equal, judged(model), before))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_gradients_reach_the_image_through_it(make_stock_cfg):
    model = with_random_statistics(build_model(make_stock_cfg("faster_rcnn_tiny_fpn")))
    pixels = torch.rand(1, 3, 64, 64)
    gradients = []
    for each in (model.backbone, folded(model).backbone):
        image = pixels.clone().requires_grad_()
        each(image)["p2"].square().sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)], ids=type
)
def test_norms_that_depend_on_the_input_stay(norm):
    layer = folded(nn.Sequential(Conv2d(3, 4, 3, norm=norm)).eval())[0]
    assert type(layer.norm) is type(norm)
