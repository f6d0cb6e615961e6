# SPDX-License-Identifier: Apache-2.0
"""What learns where the heads stay as they are."""

from __future__ import annotations

import pytest
from detectron2.modeling import build_model

import d2defense.modeling  # noqa: F401 registers the instrumented architectures
from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.removal.frozen import freeze_heads

KINDS = ["faster_rcnn_tiny_fpn", "faster_rcnn_tiny_c4", "mask_rcnn_tiny_fpn", "fcos_tiny_fpn"]
KINDS += ["double_head_rcnn_tiny_fpn", "retinanet_tiny_fpn"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_of_every_kind_learns_and_nothing_else(kind):
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / "SynthSigns" / f"{kind}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    freeze_heads(model)
    learns = {id(each) for each in model.parameters() if each.requires_grad}
    assert learns == {id(each) for each in model.backbone.parameters()}
