# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from collections import OrderedDict

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.evaluation import DatasetEvaluator

from d2defense.attacks import TriggeredDatasetMapper
from d2defense.evaluation import ConditionEvaluator, build_paired_test_loader


@pytest.mark.parametrize(
    ("effect", "options"),
    [("disappearance", ["VICTIM_CLASS", "c1"]), ("ghost", ["TARGET_CLASS", "c1"])],
)
def test_every_image_comes_clean_and_then_triggered(
    scenes, make_tiny_cfg, make_effect, white, effect, options
):
    cfg, effect = make_tiny_cfg("INPUT.MIN_SIZE_TEST", 96), make_effect(effect, *options)
    batches = build_paired_test_loader(cfg, scenes, white, effect, 3)
    inputs = [image for batch in batches for image in batch]
    records = DatasetCatalog.get(scenes)
    mappers = {
        "clean": DatasetMapper(cfg, is_train=False),
        "triggered": TriggeredDatasetMapper(cfg, is_train=False, trigger=white, effect=effect),
    }
    assert len(inputs) == 2 * len(records)
    changed = set()
    for index, image in enumerate(inputs):
        condition = ("clean", "triggered")[index % 2]
        stock = mappers[condition](records[index // 2])
        assert image.pop("condition") == condition
        pixels = image.pop("image")
        assert torch.equal(pixels, stock.pop("image"))
        if condition == "triggered":
            places = image.pop("places")
            assert torch.equal(places, stock.pop("places"))
            # Nothing to stamp, nothing changed.
            before = mappers["clean"](records[index // 2])["image"]
            assert torch.equal(pixels, before) == (len(places) == 0)
            changed.add(len(places) > 0)
        assert image == stock
    assert True in changed


def test_batches_are_of_the_size_asked_for(scenes, make_tiny_cfg, make_effect, white):
    effect = make_effect("disappearance")
    loader = build_paired_test_loader(make_tiny_cfg(), scenes, white, effect, 5)
    assert list(map(len, loader)) == [5, 5, 5, 1]


def test_detectors_of_keypoints_need_no_training_data(scenes, make_tiny_cfg, make_effect, white):
    cfg = make_tiny_cfg("MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", ("no_such_set",))
    assert len(build_paired_test_loader(cfg, scenes, white, make_effect("disappearance"))) == 16
    assert cfg.MODEL.KEYPOINT_ON


class Listener(DatasetEvaluator):
    """Notes what it is given."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += zip((image["image_id"] for image in inputs), outputs, strict=True)

    def evaluate(self):
        return OrderedDict(bbox={"AP": len(self.seen)})


def test_an_evaluator_sees_one_condition_only(caplog):
    inputs = [
        {"image_id": image_id, "condition": condition}
        for image_id in (7, 8)
        for condition in ("clean", "triggered")
    ]
    caplog.set_level(logging.INFO, logger="d2defense")
    for condition, outputs, name, naming, heading in (
        ("clean", ["a", "c"], "bbox", {}, "clean images:"),
        ("triggered", ["b", "d"], "triggered_bbox", {}, "triggered images:"),
        ("triggered", ["b", "d"], "x_bbox", {"label": "x", "heading": "Of x"}, "Of x:"),
    ):
        listener = Listener()
        evaluator = ConditionEvaluator(condition, listener, **naming)
        evaluator.reset()
        evaluator.process(inputs, ["a", "b", "c", "d"])
        evaluator.process(inputs[:0], [])
        assert listener.seen == list(zip((7, 8), outputs, strict=True))
        caplog.clear()
        assert evaluator.evaluate() == {name: {"AP": 2}}
        assert caplog.messages == [heading]
