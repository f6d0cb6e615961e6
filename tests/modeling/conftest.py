# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from model_zoo_parity import spread_scores


@pytest.fixture
def tiny_stock_cfg(make_tiny_cfg) -> CfgNode:
    """The tiny detector as Detectron2's own classes build it."""
    return make_tiny_cfg(
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    )  # fmt: skip


# The tiny detectors of configs/SynthSigns, with the keys of their stock ROI heads.
ROI_HEADS = {
    "faster_rcnn_tiny_c4": "Res5ROIHeads",
    "faster_rcnn_tiny_fpn": "StandardROIHeads",
    "mask_rcnn_tiny_fpn": "StandardROIHeads",
    "double_head_rcnn_tiny_fpn": "DoubleHeadROIHeads",
    "cascade_rcnn_tiny_fpn": "CascadeROIHeads",
}


@pytest.fixture(params=ROI_HEADS)
def any_stock_cfg(request) -> CfgNode:
    """Every kind of detector that can be probed, small, as stock classes build it."""
    return _stock_cfg(request.param)


@pytest.fixture
def make_stock_cfg() -> Callable[..., CfgNode]:
    """A function that gives one of these detectors by name, with KEY VALUE overrides."""
    return _stock_cfg


def _stock_cfg(name: str, *overrides: object) -> CfgNode:
    """The named tiny detector with stock classes instead of the instrumented ones."""
    cfg = get_d2defense_cfg()
    cascade = name.startswith("cascade")
    file = "faster_rcnn_tiny_fpn" if cascade else name
    merge_config_file(cfg, config_root() / "SynthSigns" / f"{file}.yaml")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    cfg.MODEL.ROI_HEADS.NAME = ROI_HEADS[name]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = cascade
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.fixture
def build_random() -> Callable[[CfgNode], nn.Module]:
    """A function that builds a detector with random weights whose class scores vary."""

    def build(cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        spread_scores(model)
        return model

    return build
