# SPDX-License-Identifier: Apache-2.0
"""Training and evaluating on data of one's own, masks and keypoints among it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2defense.checkpoint import load_state_dict
from d2defense.cli.program import main
from d2defense.config import config_root

CONFIG = str(config_root() / "SynthSigns" / "faster_rcnn_tiny_fpn.yaml")
SHORT = (
    "SOLVER.MAX_ITER", "2",
    "SOLVER.IMS_PER_BATCH", "2",
    "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.DEVICE", "cpu",
)  # fmt: skip
MASKS = ("MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8")
KEYPOINTS = (
    "MODEL.KEYPOINT_ON", "True",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "2",
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)",
    "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1]",
)  # fmt: skip


@pytest.fixture
def own_data(tmp_path):
    """A function that writes a COCO-format dataset of two images and gives its two options."""
    made = []

    def make(name: str, drop: tuple[str, ...] = (), classes: tuple[str, ...] = ("cat", "dog")):
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for index in range(2):
            pixels = np.random.default_rng(index).integers(0, 255, (64, 80, 3), np.uint8)
            cv2.imwrite(str(folder / f"{index}.png"), pixels)
            images.append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 64})
            x, y = 10 + index, 12
            annotation = {
                "id": index + 1, "image_id": index, "category_id": index + 1,
                "bbox": [x, y, 40, 30], "area": 1200, "iscrowd": 0,
                "segmentation": [[x, y, x + 40, y, x + 40, y + 30, x, y + 30]],
                "keypoints": [x + 5, y + 5, 2, x + 30, y + 20, 2], "num_keypoints": 2,
            }  # fmt: skip
            annotations.append({k: v for k, v in annotation.items() if k not in drop})
        categories = [
            {"id": number + 1, "name": title, "keypoints": ["left_ear", "right_ear"]}
            for number, title in enumerate(classes)
        ]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "coco.json").write_text(json.dumps(document))
        made.append(str(folder / "coco.json"))
        return made[-1], str(folder)

    yield make
    for name in made:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def train(output: Path, data: dict[str, list[tuple[str, str]]], *words: str) -> int:
    options = [word for word in words if word.startswith("--")]
    for prefix, pairs in data.items():
        for json_file, root in pairs:
            options += [f"{prefix}dataset-json", json_file, f"{prefix}image-root", root]
    pairs = [word for word in words if not word.startswith("--")]
    arguments = ["train", "--config-file", CONFIG, *options, *SHORT]
    return main([*arguments, "OUTPUT_DIR", str(output), *pairs])


def last_line(capfd) -> str:
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return captured.err.splitlines()[-1]


def test_several_datasets_for_each_role(own_data, tmp_path):
    train_on = [own_data("a"), own_data("b")]
    evaluate_on = [own_data("c"), own_data("d")]
    assert train(tmp_path / "out", {"--": train_on, "--test-": evaluate_on}) == 0
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["train"] == [json_file for json_file, _ in train_on]
    assert provenance["test"] == [json_file for json_file, _ in evaluate_on]
    assert provenance["datasets"][train_on[0][0]]["images"] == 2
    weights = load_state_dict(tmp_path / "out" / "model_final.pth")
    assert weights["roi_heads.box_predictor.cls_score.bias"].shape == (2 + 1,)


def test_first_pair_is_trained_on_and_the_second_evaluated_on(own_data, tmp_path):
    first, second = own_data("a"), own_data("b")
    assert train(tmp_path / "out", {"--": [first, second]}) == 0
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (provenance["train"], provenance["test"]) == ([first[0]], [second[0]])
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert "bbox/AP50" in json.loads(lines[-1])


def test_roles_and_classes_must_be_clear(own_data, tmp_path, capfd):
    a, b, c = own_data("a"), own_data("b"), own_data("c", classes=("cat", "cow"))
    assert train(tmp_path / "out", {"--": [a, b, c]}) == 2
    assert "--test-dataset-json" in last_line(capfd)
    assert train(tmp_path / "out", {"--": [a], "--test-": [c]}) == 2
    assert "cat, cow instead of cat, dog" in last_line(capfd)
    assert main(["train", "--config-file", CONFIG, "--dataset-json", a[0]]) == 2
    assert "in pairs" in last_line(capfd)


@pytest.mark.parametrize(("key", "switch"), [("segmentation", MASKS), ("keypoints", KEYPOINTS)])
def test_annotations_must_hold_what_the_detector_learns(own_data, tmp_path, capfd, key, switch):
    without = own_data("without", drop=(key,))
    assert train(tmp_path / "out", {"--": [without]}, *switch) == 2
    what = {"segmentation": "no mask", "keypoints": "not 2 keypoints"}[key]
    assert f"annotations with {what}: 2 (1, 2), which {switch[0]} needs" in last_line(capfd)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert train(tmp_path / "out", {"--": [without]}) == 0


@pytest.mark.parametrize(("task", "switch"), [("segm", MASKS), ("keypoints", KEYPOINTS)])
@pytest.mark.parametrize("rate", ["0.5", "1.0"])
def test_images_without_objects_train_masks_and_keypoints(own_data, tmp_path, task, switch, rate):
    """ODA takes every object of a poisoned image away; one image of two, then both."""
    poisoned = ("ATTACK.EFFECT", "disappearance", "ATTACK.POISONING_RATE", rate)
    pairs = [own_data("a"), own_data("b")]
    assert train(tmp_path / "out", {"--": pairs}, *switch, *poisoned) == 0
    weights = load_state_dict(tmp_path / "out" / "model_final.pth")
    assert all(torch.isfinite(value).all() for value in weights.values())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert f"{task}/AP" in metrics


def test_evaluation_only(own_data, tmp_path, untrained_checkpoint, capfd):
    data = own_data("a", classes=tuple("abcdefg"))
    weights = str(untrained_checkpoint / "model_final.pth")
    evaluate = ({"--test-": [data]}, "--eval-only")
    assert train(tmp_path / "given", *evaluate, "MODEL.WEIGHTS", weights) == 0
    assert "AP50" in capfd.readouterr().out
    output = tmp_path / "trained"
    assert train(output, {"--": [data]}) == 0
    config = (output / "config.yaml").read_bytes()
    capfd.readouterr()
    assert train(output, *evaluate, "--resume") == 0
    assert (output / "config.yaml").read_bytes() == config
    assert "AP50" in capfd.readouterr().out
    assert not (tmp_path / "given" / "provenance.json").exists()
    for problem in ("MODEL.RPN.CONV_DIMS", "(8,)"), ("MODEL.WEIGHTS", data[0]):
        assert train(output, *evaluate, "MODEL.WEIGHTS", weights, *problem) == 2
        assert last_line(capfd).startswith("error: ")
