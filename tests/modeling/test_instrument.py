# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg

from d2defense.modeling import UnsupportedArchitectureError, instrument_config


def zoo(name: str):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(name))
    return cfg


def test_stock_detector_becomes_the_instrumented_one():
    stock = zoo("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg = instrument_config(stock)
    assert cfg.MODEL.META_ARCHITECTURE == "InstrumentedRCNN"
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "InstrumentedRPN"
    assert cfg.MODEL.ROI_HEADS.NAME == "InstrumentedStandardROIHeads"
    # Nothing else changes, and the caller's configuration stays as it is.
    assert stock == zoo("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.META_ARCHITECTURE = stock.MODEL.META_ARCHITECTURE
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = stock.MODEL.PROPOSAL_GENERATOR.NAME
    cfg.MODEL.ROI_HEADS.NAME = stock.MODEL.ROI_HEADS.NAME
    assert cfg == stock


def test_instrumenting_twice_changes_nothing_more():
    once = instrument_config(zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"))
    assert instrument_config(once) == once


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_stays_frozen(frozen):
    stock = zoo("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    if frozen:
        stock.freeze()
    assert instrument_config(stock).is_frozen() == frozen


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "ProposalNetwork"),
        ("Misc/semantic_R_50_FPN_1x.yaml", "labels pixels"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "precomputed proposals"),
    ],
)
def test_other_architectures_are_refused_with_a_sentence(config, reason):
    with pytest.raises(UnsupportedArchitectureError, match=reason) as caught:
        instrument_config(zoo(config))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).split()) >= 8


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_3x.yaml", "InstrumentedRetinaNet"),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml", "InstrumentedPanopticFPN"),
    ],
)
def test_other_detectors_become_instrumented_ones(config, name):
    cfg = instrument_config(zoo(config))
    assert name == cfg.MODEL.META_ARCHITECTURE
    assert instrument_config(cfg) == cfg


def test_class_scores_without_a_softmax_are_refused_where_the_head_has_none(make_stock_cfg):
    cfg = make_stock_cfg("double_head_rcnn_tiny_fpn", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    with pytest.raises(UnsupportedArchitectureError, match="USE_SIGMOID_CE"):
        instrument_config(cfg)


def test_the_loss_by_frequencies_of_the_training_data_is_left_out():
    cfg = zoo("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    assert not instrument_config(cfg).MODEL.ROI_BOX_HEAD.USE_FED_LOSS


def test_names_that_nobody_registered_are_cut_short():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "A" * 10_000
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(UnsupportedArchitectureError, match=r"MODEL\.ROI_HEADS\.NAME") as caught:
        instrument_config(cfg)
    assert len(str(caught.value)) < 400
