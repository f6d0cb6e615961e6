# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_backbone, build_model

from d2defense.modeling import module_group_parameters, resettable_modules


@pytest.fixture
def model(make_tiny_cfg):
    return build_model(make_tiny_cfg())


def test_groups_of_a_detector_without_masks(model):
    assert resettable_modules(model) == {
        "rpn": ("proposal_generator.",),
        "box_head": ("roi_heads.box_head.",),
        "box_predictor": ("roi_heads.box_predictor.",),
    }


def test_mask_head_is_a_group_where_there_is_one(make_tiny_cfg):
    model = build_model(make_tiny_cfg("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8))
    assert resettable_modules(model)["mask_head"] == ("roi_heads.mask_head.",)
    names = module_group_parameters(model, ["mask_head"])
    assert names
    assert set(names) == {name for name, _ in model.named_parameters() if "mask_head" in name}


def test_groups_are_disjoint_and_leave_the_backbone(model):
    groups = {group: module_group_parameters(model, [group]) for group in resettable_modules(model)}
    everything = [name for names in groups.values() for name in names]
    assert len(everything) == len(set(everything))
    rest = set(model.state_dict()) - set(everything)
    assert rest == {name for name in model.state_dict() if name.startswith("backbone.")}
    assert set(groups["rpn"]) == {
        f"proposal_generator.rpn_head.{layer}.{kind}"
        for layer in ("conv", "objectness_logits", "anchor_deltas")
        for kind in ("weight", "bias")
    }


def test_parameters_come_in_the_order_of_the_state_dict(model):
    names = module_group_parameters(model, ["box_predictor", "rpn"])
    assert names == [name for name in model.state_dict() if name in set(names)]


def test_unknown_groups_are_refused_with_those_there_are(model):
    with pytest.raises(ValueError, match=r"no module group neck, mask_head .*rpn, box_head"):
        module_group_parameters(model, ["rpn", "neck", "mask_head"])


def test_tiny_detector_has_less_than_a_million_parameters(model):
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_tiny_backbone_has_the_strides_it_says(make_tiny_cfg):
    backbone = build_backbone(make_tiny_cfg()).eval()
    image = torch.zeros(1, 3, 128, 192)
    with torch.no_grad():
        features = backbone(image)
    shapes = backbone.output_shape()
    assert {"p2", "p3", "p4", "p5"} <= set(features)
    for name, stride in (("p2", 4), ("p3", 8), ("p4", 16), ("p5", 32)):
        assert shapes[name].stride == stride
        assert features[name].shape == (1, shapes[name].channels, 128 // stride, 192 // stride)
