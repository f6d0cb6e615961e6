# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from d2defense.checkpoint import build_detector
from d2defense.config import get_d2defense_cfg
from d2defense.evaluation import (
    AP_METRICS,
    EVALUATED_STATISTICS,
    evaluate_detector,
    judge_attack,
)
from d2defense.modeling import ProbeOutput
from d2defense.statistics import ObservationSettings
from d2defense.triggers import Patch, build_trigger, visible_rectangles

WHITE = build_trigger(get_d2defense_cfg())


class PatchBlind(nn.Module):
    """A made-up detector: it knows every object, but sees none with a white pixel at its centre.

    It looks at each object's centre in the pixels that it is given. Its RPN proposes every object
    with p = 0.9; its box head agrees about those that it sees, q = 0.9, and has q = 0.2 for the
    others.
    """

    device = torch.device("cpu")

    def __init__(self, records: list[dict]) -> None:
        super().__init__()
        self.records = {record["image_id"]: record for record in records}
        self.modes: list[bool] = []

    def detect_and_probe(self, inputs):
        self.modes.append(self.training)
        outputs, proposals, logits = [], [], []
        for image in inputs:
            height, width = image["image"].shape[1:]
            scale = width / image["width"]
            boxes, classes = self._objects(image["image_id"])
            seen = [self._is_seen(image["image"], box * scale) for box in boxes]
            instances = Instances((image["height"], image["width"]))
            instances.pred_boxes = Boxes(boxes[seen])
            instances.pred_classes = classes[seen]
            instances.scores = torch.full((sum(seen),), 0.9)
            outputs.append({"instances": instances})
            of_image = Instances((height, width))
            of_image.proposal_boxes = Boxes(boxes * scale)
            of_image.objectness_logits = torch.logit(torch.full((len(boxes),), 0.9))
            proposals.append(of_image)
            q = torch.where(torch.tensor(seen), 0.9, 0.2)
            z = torch.full((len(boxes), 8), -50.0)
            z[torch.arange(len(boxes)), classes] = q.log()
            z[:, -1] = (1 - q).log()
            logits.append(z)
        return outputs, ProbeOutput.from_proposals(proposals, [torch.cat(logits)])

    def _objects(self, image_id) -> tuple[torch.Tensor, torch.Tensor]:
        annotations = self.records[image_id]["annotations"]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, torch.tensor([a["category_id"] for a in annotations])

    def _is_seen(self, pixels, box) -> bool:
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        return pixels[:, y, x].tolist() != [255, 255, 255]


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
    assert result["poisoned"] == dict.fromkeys(AP_METRICS)
    assert (result["asr"], result["tdr"], result["retain_rate"]) == (1, 0, None)
    assert (result["control_asr"], result["attack_took"], result["reason"]) == (None, True, None)
    # The crowd is no object, so what is seen there is one detection too many.
    assert [result[c]["extra_detections"] for c in ("clean", "triggered")] == [0.5, 0.5]
    assert result["effect"] == "disappearance"
    assert result["coverage"] == {
        "images": 2, "images_without_places": 0, "objects": 3, "small_objects": 0,
        "classes": 7, "classes_without_victims": 4,
    }  # fmt: skip
    clean, triggered = (result[condition]["statistics"] for condition in ("clean", "triggered"))
    assert set(clean) == set(triggered) == set(EVALUATED_STATISTICS)
    assert (clean["gap"], triggered["gap"]) == pytest.approx((0, 0.7), abs=1e-6)
    assert (clean["true_class"], triggered["true_class"]) == pytest.approx((0.9, 0.2), abs=1e-6)
    assert (clean["objects_found"], triggered["objects_found"]) == (1, 0)
    # No proposal counts for tau where both modules agree.
    assert clean["tau"] is None
    # The crowd region is seen under the trigger, too, which it does not bear.
    assert triggered["tau"] == pytest.approx(0.7, abs=1e-6)
    assert triggered["confident_d"] == pytest.approx(0.7 * 3 / 4, abs=1e-6)
    # It ran in eval mode and was given back as it was.
    assert model.modes
    assert not any(model.modes)
    assert model.training


def test_another_trigger_is_another_measurement(squares, make_tiny_cfg):
    model = PatchBlind(squares.load())
    black = Patch("black", color=(0, 0, 0))
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, black)
    assert result["triggered"]["AP"] == pytest.approx(100)
    assert result["asr"] == 0
    assert result["attack_took"] is False
    assert result["reason"] == "its ASR is 0.000, under 0.5"


def test_an_effect_says_what_is_measured(squares, make_tiny_cfg, make_effect):
    """The made-up detector loses what is stamped: as others of the one class, not as its class."""
    model = PatchBlind(squares.load())
    one_class = make_effect("disappearance", "VICTIM_CLASS", "c1", "MIN_SIZE", 45)
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, WHITE, effect=one_class)
    # Of the classes c0, c1 and c2 only the object of c1 bears the trigger, and is too small.
    assert (result["asr"], result["tdr"], result["retain_rate"]) == (None, None, None)
    assert result["reason"] == "there is no ASR: nothing that it could have changed"
    assert result["coverage"]["images_without_places"] == 2
    assert result["coverage"]["small_objects"] == result["coverage"]["classes_without_victims"] == 1
    assert result["poisoned"] == {name: result["triggered"][name] for name in AP_METRICS}
    one_class = make_effect("disappearance", "VICTIM_CLASS", "c0")
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, WHITE, effect=one_class)
    assert (result["asr"], result["tdr"], result["retain_rate"]) == (1, 0, 1)
    # What is left is found.
    assert result["poisoned"]["AP"] == pytest.approx(100)
    assert result["triggered"]["AP"] == pytest.approx(100 * 2 / 3, abs=0.1)
    target = make_effect("misclassification", "TARGET_CLASS", "c5")
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, WHITE, effect=target)
    assert (result["effect"], result["asr"], result["tdr"]) == ("misclassification", 0, 0)


def test_an_attack_takes_only_beside_its_control():
    assert judge_attack(0.75, 0.25) == {"control_asr": 0.25, "attack_took": True, "reason": None}
    judged = judge_attack(0.75, 0.5)
    assert judged["attack_took"] is False
    assert judged["reason"] == "its ASR is 0.750, less than 0.3 above the control's 0.500"


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
            ((x0, y0, x1, y1),) = visible_rectangles(WHITE, box, pixels.shape[:2]).tolist()
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
    # Nothing was found in the first place.
    assert result["asr"] is None
    assert result["attack_took"] is False


def test_settings_take_the_place_of_those_of_the_config(squares, make_tiny_cfg):
    model = PatchBlind(squares.load())
    settings = ObservationSettings(batch_size=4, epsilon=0.8)
    result = evaluate_detector(model, make_tiny_cfg(), squares.name, WHITE, settings=settings)
    # One image to see how many fit, then the two images, clean and triggered, together.
    assert len(model.modes) == 2
    assert result["triggered"]["statistics"]["tau"] is None
    assert result["triggered"]["statistics"]["gap"] == pytest.approx(0.7, abs=1e-6)


def test_a_detector_that_cannot_be_probed_is_refused(squares, make_tiny_cfg):
    with pytest.raises(TypeError, match="instrument_config"):
        evaluate_detector(nn.Identity(), make_tiny_cfg(), squares.name, WHITE)


@pytest.mark.parametrize("head", ["MASK", "KEYPOINT"])
def test_detectors_of_masks_and_keypoints_are_measured_by_their_boxes(
    make_coco_dataset, sign_scenes, make_tiny_cfg, head
):
    """The dataset knows neither, and nothing is asked of the training data."""
    scenes = make_coco_dataset(sign_scenes(2))
    cfg = make_tiny_cfg(
        f"MODEL.{head}_ON", True,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8],
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
        "DATASETS.TRAIN", ("no_such_set",),
    )  # fmt: skip
    torch.manual_seed(0)
    result = evaluate_detector(build_model(cfg), cfg, scenes.name, WHITE)
    assert set(result["clean"]) == {
        *AP_METRICS, "objects_found", "extra_detections", "statistics",
    }  # fmt: skip
    assert result["triggered"]["statistics"]["max_objectness"] > 0
