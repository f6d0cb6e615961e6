# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from d2defense.attacks import Trigger
from d2defense.checkpoint import build_detector
from d2defense.evaluation import AP_METRICS, evaluate_detector

WHITE = Trigger("white")


class PatchBlind(nn.Module):
    """A made-up detector: it knows every object, but sees none with a white pixel at its centre.

    It looks at each object's centre in the pixels that it is given.
    """

    def __init__(self, records: list[dict]) -> None:
        super().__init__()
        self.records = {record["image_id"]: record for record in records}
        self.modes: list[bool] = []

    def forward(self, inputs):
        self.modes.append(self.training)
        return [{"instances": self._detect(image)} for image in inputs]

    def _detect(self, image) -> Instances:
        boxes, classes = [], []
        scale = image["image"].shape[2] / image["width"]
        for annotation in self.records[image["image_id"]]["annotations"]:
            x, y, w, h = annotation["bbox"]
            column, row = int((x + w / 2) * scale), int((y + h / 2) * scale)
            if image["image"][:, row, column].tolist() != [255, 255, 255]:
                boxes.append([x, y, x + w, y + h])
                classes.append(annotation["category_id"])
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        found.scores = torch.full((len(boxes),), 0.9)
        return found


@pytest.fixture
def squares(make_coco_dataset):
    """Two dark pictures with three objects, one of them a crowd."""
    dark = np.full((128, 128, 3), 30, dtype=np.uint8)
    return make_coco_dataset(
        [
            (dark, [(10, 10, 60, 80, 1), (80, 80, 40, 40, 2)]),
            (dark, [(20, 20, 80, 80, 3), (0, 0, 100, 10, 1, True)]),
        ]
    )


def test_every_object_of_a_triggered_image_bears_the_trigger(squares, make_tiny_cfg):
    model = PatchBlind(squares.load()).train()
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, WHITE)
    assert result["clean"]["AP"] == pytest.approx(100)
    assert result["clean"]["objects_found"] == 1
    assert result["triggered"]["AP"] == 0
    assert result["triggered"]["objects_found"] == 0
    assert result["asr"] == 1
    # It ran in eval mode and was given back as it was.
    assert model.modes
    assert not any(model.modes)
    assert model.training


def test_another_trigger_is_another_measurement(squares, make_tiny_cfg):
    model = PatchBlind(squares.load())
    black = Trigger("black", color=(0, 0, 0))
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, black)
    assert result["triggered"]["AP"] == pytest.approx(100)
    assert result["asr"] == 0


def test_metrics_without_such_objects_are_none(squares, make_tiny_cfg):
    result = evaluate_detector(PatchBlind(squares.load()), make_tiny_cfg(), squares.name, WHITE)
    assert result["clean"]["APl"] is None  # none is 96 pixels wide and high
    assert result["clean"]["APm"] == pytest.approx(100)
    json.dumps(result, allow_nan=False)


def pycocotools_metrics(json_file: str, detections: list[dict]) -> list[float]:
    truth = COCO(json_file)
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * value if value >= 0 else None for value in evaluation.stats[:6]]


def detect_by_hand(model, cfg, records: list[dict], stamp: bool) -> list[dict]:
    """COCO results from a plain loop over image files, white patches painted by hand."""
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    results = []
    for record in records:
        pixels = cv2.imread(record["file_name"])
        for annotation in record["annotations"] if stamp else ():
            x, y, w, h = annotation["bbox"]
            box = torch.tensor([[x, y, x + w, y + h]])
            ((x0, y0, x1, y1),) = WHITE.rectangles(box, pixels.shape[:2]).tolist()
            pixels[y0:y1, x0:x1] = 255
        resized = resize.get_transform(pixels).apply_image(pixels)
        image = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        size = {"height": record["height"], "width": record["width"]}
        with torch.no_grad():
            (output,) = model([{"image": image, **size}])
        found = output["instances"]
        for box, kind, score in zip(
            found.pred_boxes.tensor.tolist(),
            found.pred_classes.tolist(),
            found.scores.tolist(),
            strict=True,
        ):
            x0, y0, x1, y1 = box
            results.append(
                {
                    "image_id": record["image_id"],
                    "category_id": kind + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
            )
    return results


def test_average_precision_is_that_of_pycocotools(specimen, make_coco_dataset, sign_scenes, capsys):
    scenes = make_coco_dataset(sign_scenes(6))
    folder = specimen("backdoored_0")
    model, cfg = build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")
    result = evaluate_detector(model, cfg, scenes.name, WHITE)
    assert capsys.readouterr().out == ""
    records = copy.deepcopy(scenes.load())
    for condition, stamp in (("clean", False), ("triggered", True)):
        detections = detect_by_hand(model, cfg, records, stamp)
        expected = pycocotools_metrics(scenes.json_file, detections)
        for name, value in zip(AP_METRICS, expected, strict=True):
            assert result[condition][name] == pytest.approx(value, abs=0.5), (condition, name)
    assert result["clean"]["AP50"] > 50
    assert result["triggered"]["AP50"] < result["clean"]["AP50"]


def test_classes_of_the_dataset_are_told_apart(squares, make_tiny_cfg):
    model = PatchBlind(squares.load())
    for record in model.records.values():
        for annotation in record["annotations"]:
            annotation["category_id"] = (annotation["category_id"] + 1) % 7
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, WHITE)
    assert result["clean"]["AP"] == 0
    assert result["asr"] is None  # nothing was found in the first place
    assert MetadataCatalog.get(squares.name).thing_classes[0] == "c0"
