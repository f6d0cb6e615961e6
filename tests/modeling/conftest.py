# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn


@pytest.fixture
def tiny_stock_cfg(make_tiny_cfg) -> CfgNode:
    """The tiny detector as Detectron2's own classes build it."""
    return make_tiny_cfg(
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    )  # fmt: skip


@pytest.fixture
def build_random() -> Callable[[CfgNode], nn.Module]:
    """A function that builds a detector with random weights whose class scores vary."""

    def build(cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                # Without trained statistics, each residual block would double the variance.
                if name.endswith("conv3.norm.weight"):
                    tensor.fill_(0.2)
            model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.3)
            model.proposal_generator.rpn_head.objectness_logits.weight.normal_(0, 0.3)
        return model

    return build
