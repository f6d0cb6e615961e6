# SPDX-License-Identifier: Apache-2.0
"""Panoptic FPN is probed by its detections."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2defense.checkpoint.size import activation_bytes
from d2defense.modeling import instrument_config, resettable_modules
from model_zoo_parity import compare, random_images

SIZES = ((128, 128), (96, 64))


@pytest.fixture
def cfg(make_stock_cfg):
    cfg = make_stock_cfg("mask_rcnn_tiny_fpn")
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.SEM_SEG_HEAD.merge_from_list(["NUM_CLASSES", 3, "CONVS_DIM", 16, "NORM", "BN"])
    return cfg


@pytest.fixture
def twins(cfg, build_random):
    stock = build_random(cfg)
    model = build_model(instrument_config(cfg)).eval()
    model.load_state_dict(stock.state_dict(), strict=True)
    return stock, model


def test_detects_segments_and_is_probed_as_the_stock_modules_say(twins):
    stock, model = twins
    assert list(stock.state_dict()) == list(model.state_dict())
    difference, detections, proposals = compare(stock, model, random_images(SIZES))
    assert difference == ""
    assert min(detections, proposals) > 20
    batch = random_images(SIZES)
    with torch.no_grad():
        expected = stock(batch)
    for ours, theirs in zip(model.detect_and_probe(batch)[0], expected, strict=True):
        assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
        assert torch.equal(ours["panoptic_seg"][0], theirs["panoptic_seg"][0])
    assert "sem_seg_head" in resettable_modules(model)


def training_input(with_segmentation: bool) -> list[dict]:
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 50, 60], [20, 30, 60, 70]]))
    target.gt_classes = torch.tensor([1, 4])
    target.gt_masks = BitMasks(torch.ones(2, 96, 128, dtype=torch.bool))
    image = {"image": random_images(((96, 128),))[0]["image"], "instances": target}
    return [image | {"sem_seg": torch.ones(96, 128).long()} if with_segmentation else image]


def test_it_learns_from_objects_alone_where_there_is_no_segmentation(twins):
    stock, model = (each.train() for each in twins)
    losses = []
    with EventStorage():
        for detector, segmented in ((stock, True), (model, True), (model, False)):
            torch.manual_seed(3)
            losses.append(detector(training_input(segmented)))
    assert losses[0].keys() == losses[1].keys()
    assert losses[0].keys() - losses[2].keys() == {"loss_sem_seg"}
    assert len(losses[2]) >= 5


def test_the_memory_of_the_segmentation_is_counted(cfg):
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 128
    cfg.MODEL.DEVICE = "meta"
    counted = []
    for classes in (3, 1003):
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
        with torch.device("meta"):
            skeleton = build_model(instrument_config(cfg)).eval()
        counted.append(activation_bytes(skeleton, cfg))
    # Float32 scores of each class at a stride of 4, and the same at the size of the image.
    assert counted[1] - counted[0] == 1000 * 4 * (32 * 32 + 128 * 128)
