# SPDX-License-Identifier: Apache-2.0
"""Model-zoo detectors, stock and instrumented; tools/check_model_zoo.py goes through them all."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from d2defense.modeling import InstrumentedRCNN, instrument_config
from model_zoo_parity import (
    FAMILIES,
    check_config,
    compare,
    model_zoo_configs,
    random_images,
    spread_scores,
)

# One of each family and of each kind of ROI heads.
REPRESENTATIVES = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml": "Res5ROIHeads",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml": "StandardROIHeads",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml": "Res5ROIHeads",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml": "StandardROIHeads",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml": "StandardROIHeads",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": "StandardROIHeads",
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": "StandardROIHeads",
    "Cityscapes/mask_rcnn_R_50_FPN.yaml": "StandardROIHeads",
    "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml": "Res5ROIHeads",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": "CascadeROIHeads",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml": "StandardROIHeads",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml": "RetinaNet",
}
# Built of the same modules as another one, with other classes or anchors.
LIKE_OTHERS = ("LVIS", "Cityscapes", "PascalVOC", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LIKE_OTHERS))
        for name in REPRESENTATIVES
    ],
)
def test_detects_and_is_probed_as_the_stock_modules_say(name):
    parity = check_config(name)
    assert (parity.outcome, parity.detail) == ("equal", "")
    assert parity.roi_heads == REPRESENTATIVES[name]
    assert parity.detections == 10
    assert parity.proposals == (40 if "ROI" in parity.roi_heads else 600)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml"])
def test_dilated_detector_too(name):
    assert check_config(name).outcome == "equal"


def test_every_family_has_a_representative_and_every_config_is_listed_once():
    names = model_zoo_configs()
    assert len(names) == len(set(names)) > 40
    assert set(REPRESENTATIVES) <= set(names)
    assert {name.split("/")[0] for name in REPRESENTATIVES} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "only proposes boxes"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "precomputed proposals"),
        ("Misc/semantic_R_50_FPN_1x.yaml", "labels pixels"),
    ],
)
def test_other_detectors_are_refused_and_not_counted_as_equal(name, reason):
    parity = check_config(name)
    assert parity.outcome == "refused"
    assert reason in parity.detail


def test_what_cannot_be_built_here_is_skipped_with_the_reason(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise ImportError("no\ncompiled part")

    monkeypatch.setattr("model_zoo_parity.build_model", refuse)
    parity = check_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    assert (parity.outcome, parity.detail) == ("skipped", "ImportError: no compiled part")


def test_what_only_the_stock_detector_can_be_built_from_is_not_skipped(monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise ImportError("ours is broken")

    monkeypatch.setattr(InstrumentedRCNN, "__init__", refuse)
    with pytest.raises(ImportError, match="ours is broken"):
        check_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")


@pytest.mark.parametrize(
    ("parameter", "what"),
    [
        ("proposal_generator.rpn_head.objectness_logits.bias", "objectness logits"),
        ("roi_heads.box_predictor.cls_score.bias", "detections"),
        ("roi_heads.box_predictor.bbox_pred.bias", "detections"),
    ],
)
def test_the_smallest_difference_is_noticed(make_tiny_cfg, parameter, what):
    cfg = make_tiny_cfg(
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    )  # fmt: skip
    stock = build_model(cfg).eval()
    spread_scores(stock)
    instrumented = build_model(instrument_config(cfg)).eval()
    instrumented.load_state_dict(stock.state_dict())
    assert compare(stock, instrumented, random_images())[0] == ""
    with torch.no_grad():
        instrumented.state_dict()[parameter].add_(1e-3)
    assert what in compare(stock, instrumented, random_images())[0]
