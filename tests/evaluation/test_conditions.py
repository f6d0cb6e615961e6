# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import OrderedDict

import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.evaluation import DatasetEvaluator

from d2defense.attacks import Trigger, TriggeredDatasetMapper
from d2defense.evaluation import ConditionEvaluator, build_paired_test_loader

WHITE = Trigger("white")


def test_every_image_comes_clean_and_then_triggered(scenes, make_tiny_cfg):
    cfg = make_tiny_cfg("INPUT.MIN_SIZE_TEST", 96)
    inputs = [image for batch in build_paired_test_loader(cfg, scenes, WHITE, 3) for image in batch]
    records = DatasetCatalog.get(scenes)
    mappers = {
        "clean": DatasetMapper(cfg, is_train=False),
        "triggered": TriggeredDatasetMapper(cfg, is_train=False, trigger=WHITE),
    }
    assert len(inputs) == 2 * len(records)
    for index, image in enumerate(inputs):
        condition = ("clean", "triggered")[index % 2]
        stock = mappers[condition](records[index // 2])
        assert image.pop("condition") == condition
        assert torch.equal(image.pop("image"), stock.pop("image"))
        assert image == stock


def test_batches_are_of_the_size_asked_for(scenes, make_tiny_cfg):
    loader = build_paired_test_loader(make_tiny_cfg(), scenes, WHITE, 5)
    assert list(map(len, loader)) == [5, 5, 5, 1]


def test_detectors_of_keypoints_need_no_training_data(scenes, make_tiny_cfg):
    cfg = make_tiny_cfg("MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", ("no_such_set",))
    assert len(build_paired_test_loader(cfg, scenes, WHITE)) == 16
    assert cfg.MODEL.KEYPOINT_ON


class Listener(DatasetEvaluator):
    """Notes what it is given."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += zip((image["image_id"] for image in inputs), outputs, strict=True)

    def evaluate(self):
        return OrderedDict(bbox={"AP": len(self.seen)})


def test_an_evaluator_sees_one_condition_only():
    inputs = [
        {"image_id": image_id, "condition": condition}
        for image_id in (7, 8)
        for condition in ("clean", "triggered")
    ]
    for condition, outputs, name in (
        ("clean", ["a", "c"], "bbox"),
        ("triggered", ["b", "d"], "triggered_bbox"),
    ):
        listener = Listener()
        evaluator = ConditionEvaluator(condition, listener)
        evaluator.reset()
        evaluator.process(inputs, ["a", "b", "c", "d"])
        evaluator.process(inputs[:0], [])
        assert listener.seen == list(zip((7, 8), outputs, strict=True))
        assert evaluator.evaluate() == {name: {"AP": 2}}
