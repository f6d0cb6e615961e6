# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from d2defense.detection import CleanImage, load_clean_images


@pytest.fixture
def lively_detector(make_tiny_cfg) -> nn.Module:
    """A tiny detector with random weights whose scores differ from proposal to proposal."""
    torch.manual_seed(0)
    cfg = make_tiny_cfg("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 1.5)
        model.proposal_generator.rpn_head.objectness_logits.weight.normal_(0, 1.5)
    return model


@pytest.fixture
def clean_images(
    make_coco_dataset, sign_scenes, make_tiny_cfg
) -> Callable[[int], list[CleanImage]]:
    """A function from a number to so many images of synth_signs as the tiny detector sees them."""

    def load(count: int) -> list[CleanImage]:
        return load_clean_images(make_coco_dataset(sign_scenes(count)).load(), make_tiny_cfg())

    return load
