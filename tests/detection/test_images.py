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


def showing(*classes: tuple[int, ...]) -> list[dict]:
    """Records that show objects of these classes, and a crowd of another."""
    return [
        {
            "file_name": f"{index}.png",
            "annotations": [
                {"bbox": [0, 0, 5, 5], "iscrowd": 0, "category_id": name} for name in shown
            ]
            + [{"bbox": [0, 0, 5, 5], "iscrowd": 1, "category_id": 99}],
        }
        for index, shown in enumerate(classes)
    ]


def images_of(chosen: list[dict], name: int) -> int:
    return sum(any(a["category_id"] == name for a in record["annotations"]) for record in chosen)


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_drawn_as_often_as_common_ones(seed):
    data = showing(*[(0,)] * 900, *[(1,)] * 60, *[(2,)] * 7)
    chosen = sample_records(data, 47, seed)
    assert [images_of(chosen, name) for name in range(3)] == [20, 20, 7]
    assert chosen == sample_records(data, 47, seed)


def test_every_class_is_drawn_once_where_there_is_room():
    rng = np.random.default_rng(0)
    data = showing(*(tuple(rng.integers(0, 80, rng.integers(1, 6))) for _ in range(500)))
    for seed in range(5):
        chosen = sample_records(data, 60, seed)
        assert len(chosen) == 60
        present = {a["category_id"] for r in data for a in r["annotations"]} - {99}
        assert all(images_of(chosen, name) for name in present)


def test_images_of_one_class_are_drawn_evenly():
    """With one class the draw is a simple one: each image as likely as any other."""
    data = showing(*[(3,)] * 10)
    drawn = [record["file_name"] for seed in range(800) for record in sample_records(data, 3, seed)]
    counts = np.array([drawn.count(f"{index}.png") for index in range(10)])
    # Mean 240, standard deviation 13.
    assert abs(counts - 240).max() < 52


def test_classes_become_those_of_the_detector(make_coco_dataset, sign_scenes, make_tiny_cfg):
    records = make_coco_dataset(sign_scenes(3)).load()
    plain = load_clean_images(records, make_tiny_cfg())
    mapped = load_clean_images(records, make_tiny_cfg(), [-1, 6, 5, 4, 3, 2, 99])
    assert mapped.num_objects == sum(len(image.boxes) for image in mapped)
    for before, after in zip(plain, mapped, strict=True):
        expected = [(-1, 6, 5, 4, 3, 2, -1)[name] for name in before.classes]
        assert after.classes.tolist() == expected


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
