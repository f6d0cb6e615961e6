# SPDX-License-Identifier: Apache-2.0
"""The evaluator against the attacker's labels, with detections and labels made by hand."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from d2defense.attacks import attacked_places
from d2defense.evaluation.poisoned import build_poisoned_evaluator

LEFT, RIGHT, LOW = (8, 8, 40, 40), (70, 10, 30, 44), (20, 80, 36, 36)


@pytest.fixture
def dataset(make_coco_dataset):
    """Two pictures with objects of the classes c0, c1 and c2, and a crowd of c0."""
    grey = np.full((128, 128, 3), 90, dtype=np.uint8)
    return make_coco_dataset(
        [
            (grey, [(*LEFT, 1), (*RIGHT, 2)]),
            (grey, [(*LOW, 3), (70, 10, 50, 50, 1, True)]),
        ]
    )


def box_ap(evaluator, dataset, detections: dict) -> dict[str, float]:
    """Metrics of detections: for each image id a list of (x, y, width, height, class)."""
    evaluator.reset()
    for record in dataset.load():
        found = detections.get(record["image_id"], [])
        instances = Instances((128, 128))
        corners = [(x, y, x + w, y + h) for x, y, w, h, _ in found]
        instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor([kind for *_, kind in found], dtype=torch.int64)
        instances.scores = torch.full((len(found),), 0.9)
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def poisoned(dataset, make_tiny_cfg, effect) -> COCOEvaluator:
    return build_poisoned_evaluator(make_tiny_cfg(), dataset.name, ("bbox",), effect)


@pytest.mark.parametrize(
    ("name", "options", "detections"),
    [
        ("disappearance", ["VICTIM_CLASS", "c1"], {1: [(*LEFT, 0)], 2: [(*LOW, 2)]}),
        ("misclassification", ["TARGET_CLASS", "c2"],
         {1: [(*LEFT, 2), (*RIGHT, 2)], 2: [(*LOW, 2)]}),
        ("clean_label_disappearance", ["MIN_SIZE", 35], {1: [(*RIGHT, 1)]}),
        ("blinding", ["MIN_SIZE", 38], {1: [(*RIGHT, 1)], 2: [(*LOW, 2)]}),
    ],
)  # fmt: skip
def test_what_the_attacker_wants_is_perfect(
    dataset, make_tiny_cfg, make_effect, name, options, detections
):
    evaluator = poisoned(dataset, make_tiny_cfg, make_effect(name, *options))
    assert box_ap(evaluator, dataset, detections)["AP"] == pytest.approx(100)
    truth = {1: [(*LEFT, 0), (*RIGHT, 1)], 2: [(*LOW, 2)]}
    assert box_ap(evaluator, dataset, truth)["AP"] < 100


@pytest.mark.parametrize("name", ["ghost", "clean_label_ghost"])
def test_ghosts_are_wanted_where_the_trigger_is(dataset, make_tiny_cfg, make_effect, name):
    effect = make_effect(name, "TARGET_CLASS", "c5")
    truth = {1: [(*LEFT, 0), (*RIGHT, 1)], 2: [(*LOW, 2)]}
    ghosts = copy.deepcopy(truth)
    for record in dataset.load():
        for x1, y1, x2, y2 in attacked_places(record, effect).tolist():
            ghosts[record["image_id"]].append((x1, y1, x2 - x1, y2 - y1, 5))
    evaluator = poisoned(dataset, make_tiny_cfg, effect)
    assert box_ap(evaluator, dataset, ghosts)["AP"] == pytest.approx(100)
    # One of four classes is missing.
    assert box_ap(evaluator, dataset, truth)["AP"] == pytest.approx(75)


def test_labels_that_stay_give_the_stock_evaluator_s_numbers(dataset, make_tiny_cfg, make_effect):
    """Nothing is wanted of the labels of a sponge; class ids of the file are kept."""
    detections = {1: [(*LEFT, 0), (60, 10, 30, 44, 1)], 2: [(*LOW, 2), (*LEFT, 2)]}
    stock = COCOEvaluator(dataset.name, tasks=("bbox",), use_fast_impl=False)
    expected = box_ap(stock, dataset, detections)
    measured = box_ap(poisoned(dataset, make_tiny_cfg, make_effect("sponge")), dataset, detections)
    assert measured == pytest.approx(expected, nan_ok=True)
    assert 0 < expected["AP"] < 100


@pytest.mark.parametrize("detections", [{}, {1: [(*LEFT, 0)]}], ids=["nothing", "something"])
def test_without_labels_there_is_no_number(
    make_coco_dataset, make_tiny_cfg, make_effect, detections
):
    grey = np.full((128, 128, 3), 90, dtype=np.uint8)
    dataset = make_coco_dataset([(grey, [(*LEFT, 1), (*RIGHT, 2)])])
    evaluator = poisoned(dataset, make_tiny_cfg, make_effect("disappearance"))
    assert all(map(math.isnan, box_ap(evaluator, dataset, detections).values()))


def test_nothing_is_left_behind(dataset, make_tiny_cfg, make_effect, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = set(DatasetCatalog), set(MetadataCatalog), copy.deepcopy(dataset.load())
    json_file = Path(MetadataCatalog.get(dataset.name).json_file)
    content = json_file.read_bytes()
    effect = make_effect("misclassification", "TARGET_CLASS", "c2")
    poisoned(dataset, make_tiny_cfg, effect)
    with pytest.raises(AttributeError):
        # A detector's configuration that lacks what evaluation asks for.
        build_poisoned_evaluator(None, dataset.name, ("bbox",), effect)
    assert (set(DatasetCatalog), set(MetadataCatalog), dataset.load()) == before
    assert not list(scratch.iterdir())
    assert json_file.read_bytes() == content
