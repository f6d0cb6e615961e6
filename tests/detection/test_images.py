# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from d2defense.detection import load_clean_images, sample_records


def records(count: int) -> list[dict]:
    return [
        {"file_name": f"{index}.png", "annotations": [{"bbox": [0, 0, 5, 5], "iscrowd": 0}]}
        for index in range(count)
    ]


def test_sample_is_of_the_size_asked_for_in_dataset_order():
    chosen = sample_records(records(100), 30, seed=0)
    names = [int(record["file_name"][:-4]) for record in chosen]
    assert len(set(names)) == 30
    assert names == sorted(names)
    assert sample_records(records(100), 30, seed=0) == chosen
    assert sample_records(records(100), 30, seed=1) != chosen


@pytest.mark.parametrize("count", [0, 100, 500])
def test_everything_is_taken_where_that_is_not_too_much(count):
    assert sample_records(records(100), count, seed=0) == records(100)


def test_images_that_show_no_object_are_left_out():
    some = records(6)
    some[0]["annotations"] = []
    some[2]["annotations"][0]["iscrowd"] = 1
    del some[4]["annotations"]
    assert sample_records(some, 0, seed=0) == [some[1], some[3], some[5]]
    assert len(sample_records(some, 2, seed=0)) == 2


def test_pixels_and_boxes_are_what_stock_inference_sees(make_coco_dataset, make_tiny_cfg):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (150, 100, 3), dtype=np.uint8)
    dataset = make_coco_dataset(
        [(picture, [(10, 30, 50, 60, 2), (0, 0, 100, 150, 1, True), (90, 140, 10, 10, 7)])]
    )
    cfg = make_tiny_cfg("INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 105)
    before = copy.deepcopy(dataset.load())
    (image,) = load_clean_images(dataset.load(), cfg)
    assert dataset.load() == before
    # The longer side is limited to 105: a scale of 0.7.
    assert image.image.shape == (3, 105, 70)
    expected = torch.tensor([[7.0, 21, 42, 63], [63, 98, 70, 105]])
    torch.testing.assert_close(image.boxes, expected)
    assert image.classes.tolist() == [1, 6]
    seen = []
    predictor = DefaultPredictor(cfg)
    predictor.model.forward = lambda inputs: seen.extend(inputs) or [None]
    predictor(cv2.imread(dataset.load()[0]["file_name"]))
    assert torch.equal(image.image.float(), seen[0]["image"].float())


def test_detectors_of_keypoints_need_none(make_coco_dataset, make_tiny_cfg, sign_scenes):
    dataset = make_coco_dataset(sign_scenes(1))
    (plain,) = load_clean_images(dataset.load(), make_tiny_cfg())
    cfg = make_tiny_cfg("MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", ())
    (image,) = load_clean_images(dataset.load(), cfg)
    assert torch.equal(image.image, plain.image)
    assert cfg.MODEL.KEYPOINT_ON


def test_channel_order_is_that_of_the_config(make_coco_dataset, make_tiny_cfg):
    red = np.zeros((128, 128, 3), dtype=np.uint8)
    red[..., 0] = 250
    dataset = make_coco_dataset([(red, [(10, 10, 20, 20, 1)])])
    for image_format, channel in (("RGB", 0), ("BGR", 2)):
        (image,) = load_clean_images(dataset.load(), make_tiny_cfg("INPUT.FORMAT", image_format))
        assert image.image[:, 60, 60].tolist() == [250 * (i == channel) for i in range(3)]
