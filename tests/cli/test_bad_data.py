# SPDX-License-Identifier: Apache-2.0
"""What commands do with images that cannot be read and labels that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import d2defense.modeling  # noqa: F401 registers the instrumented architectures
from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.detection import load_calibration
from d2defense.report.results import load_results

QUICK = ["--triggers", "white", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]
SHORT = ["REMOVAL.SOLVER.MAX_ITER", "2", "REMOVAL.SOLVER.IMS_PER_BATCH", "2"]
STEPS = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
CONFIGS = config_root() / "SynthSigns"


class Data:
    """A COCO-format dataset that a test may spoil before a command sees it."""

    def __init__(self, folder: Path, scenes: list) -> None:
        self.json_file, self.folder = folder / "annotations.json", folder
        images, self.annotations = [], []
        for index, (pixels, objects) in enumerate(scenes):
            name = f"{index}.jpg"
            cv2.imwrite(str(folder / name), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
            images.append({"id": index + 1, "file_name": name, "width": 128, "height": 128})
            for x, y, w, h, category in objects:
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "image_id": index + 1,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
        categories = [{"id": i + 1, "name": f"c{i}"} for i in range(7)]
        self.document = {
            "images": images,
            "annotations": self.annotations,
            "categories": categories,
        }
        self.write()

    def write(self) -> None:
        self.json_file.write_text(json.dumps(self.document))

    def cut_short(self, *indices: int) -> None:
        """Keep half of some images' bytes."""
        for index in indices:
            path = self.folder / f"{index}.jpg"
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def without(self, *indices: int) -> Data:
        """The same dataset, never with these images."""
        left_out = {index + 1 for index in indices}
        for section, key in (("images", "id"), ("annotations", "image_id")):
            self.document[section][:] = [
                record for record in self.document[section] if record[key] not in left_out
            ]
        self.write()
        return self

    def options(self, role: str = "") -> list[str]:
        return [
            f"--{role}dataset-json", str(self.json_file), f"--{role}image-root", str(self.folder)
        ]  # fmt: skip


@pytest.fixture
def data(tmp_path, sign_scenes, monkeypatch):
    """A function that makes a dataset of so many scenes, always the same; others from ``first``."""
    monkeypatch.setenv("D2DEFENSE_CACHE", str(tmp_path / "cache"))
    made = []

    def make(name: str, count: int = 8, first: int = 0) -> Data:
        (tmp_path / name).mkdir()
        made.append(Data(tmp_path / name, sign_scenes(first + count)[first:]))
        return made[-1]

    yield make
    for one in made:
        for catalogue in (DatasetCatalog, MetadataCatalog):
            if str(one.json_file) in catalogue:
                catalogue.remove(str(one.json_file))


@pytest.fixture
def mask_checkpoint(tmp_path) -> Path:
    """An output folder of the tiny Mask R-CNN with random weights."""
    folder = tmp_path / "mask_rcnn"
    folder.mkdir()
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, CONFIGS / "mask_rcnn_tiny_fpn.yaml")
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def fails(outcome, *words: str) -> None:
    assert outcome.code == 2
    assert "Traceback" not in outcome.err + outcome.out
    for word in words:
        assert word in outcome.err + outcome.out


def test_a_scan_leaves_an_image_that_cannot_be_read_out_and_says_so_once(
    d2defense, data, specimen, tmp_path
):
    spoiled, sound = data("spoiled"), data("sound").without(5)
    spoiled.cut_short(5)
    checkpoints = (specimen("clean_0"), specimen("backdoored_0"))
    results = {}
    for name, one in (("spoiled", spoiled), ("sound", sound)):
        output = tmp_path / f"scan_{name}"
        outcome = d2defense("scan", *checkpoints, *one.options(), "--output", output, *QUICK)
        assert outcome.code == 1
        results[name] = {result["name"]: result for result in load_results(output)}
        text = outcome.out + outcome.err
        assert text.count("5.jpg: cannot be read") == (1 if name == "spoiled" else 0)
    for name, result in results["spoiled"].items():
        (warning,) = result["warnings"]
        assert "1 of 8 images cannot be used: " in warning
        assert f"{spoiled.folder}/5.jpg: cannot be read: image file is truncated" in warning
        assert result["dataset"]["num_images"] == 7
        for key in ("verdict", "score"):
            assert result[key] == results["sound"][name][key]
    assert not any(result["warnings"] for result in results["sound"].values())


def test_a_scan_of_too_few_images_is_an_error(d2defense, data, specimen, tmp_path):
    spoiled = data("spoiled")
    spoiled.cut_short(0, 1, 2, 3, 4)
    output = tmp_path / "scan"
    outcome = d2defense("scan", specimen("clean_0"), *spoiled.options(), "--output", output, *QUICK)
    fails(outcome, "5 of 8 images cannot be used", "too few are left", "0.jpg", "4.jpg")
    (result,) = load_results(output)
    assert result["verdict"] == "error"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["images"][1].update(id=1),
        lambda d: d["annotations"][0]["bbox"].__setitem__(0, float("nan")),
        lambda d: d["categories"][0].update(name="c1"),
        lambda d: d["images"][0].update(file_name=None),
    ],
)
def test_a_dataset_with_an_error_gives_no_verdict(d2defense, data, specimen, tmp_path, spoil):
    spoiled = data("spoiled")
    spoil(spoiled.document)
    spoiled.write()
    arguments = (specimen("clean_0"), specimen("clean_1"), *spoiled.options())
    fails(
        d2defense("scan", *arguments, "--output", tmp_path / "scan", *QUICK), str(spoiled.json_file)
    )
    fails(d2defense("evaluate", *arguments), str(spoiled.json_file))
    outcome = d2defense("calibrate", *arguments, "--output", tmp_path / "calibration.json")
    fails(outcome, str(spoiled.json_file))


def test_calibration_leaves_an_image_out_and_says_so(d2defense, data, specimen, tmp_path):
    spoiled = data("spoiled")
    spoiled.cut_short(2)
    output = tmp_path / "calibration.json"
    outcome = d2defense(
        "calibrate", specimen("clean_0"), specimen("clean_1"), *spoiled.options(),
        "--output", output, "--triggers", "white", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("2.jpg: cannot be read") == 1
    assert len(load_calibration(output).reference.clean_scores) == 2


def test_an_evaluation_ends_unless_it_may_go_on_without(d2defense, data, specimen, tmp_path):
    spoiled, sound = data("spoiled"), data("sound").without(1, 6)
    spoiled.cut_short(1)
    (spoiled.folder / "6.jpg").unlink()
    outcome = d2defense("evaluate", specimen("clean_0"), *spoiled.options())
    fails(
        outcome,
        "2 of 8 images",
        "1.jpg: cannot be read",
        "6.jpg: does not exist",
        "--skip-unusable",
    )
    figures = {}
    for one, more in ((spoiled, ["--skip-unusable"]), (sound, [])):
        output = tmp_path / "evaluation.json"
        outcome = d2defense(
            "evaluate", specimen("clean_0"), *one.options(), *more, "--output", output
        )
        assert outcome.code == 0, outcome.err
        (figures[one],) = json.loads(output.read_text())
    assert figures[spoiled] == figures[sound]
    assert figures[sound]["clean"]["AP50"] > 50


def test_an_image_of_another_size_is_not_evaluated_on(d2defense, data, specimen):
    spoiled = data("spoiled")
    pixels = cv2.imread(str(spoiled.folder / "3.jpg"))
    cv2.imwrite(str(spoiled.folder / "3.jpg"), cv2.resize(pixels, (256, 256)))
    outcome = d2defense("evaluate", specimen("clean_0"), *spoiled.options())
    fails(outcome, "3.jpg: 256 x 256 pixels, but 128 x 128 in the dataset")


def train(d2defense: Callable, output: Path, *words: str, config: str = "faster") -> object:
    options = [word for word in words if word.startswith(("-", "/"))]
    pairs = [word for word in words if word not in options]
    return d2defense(
        "train", "--config-file", CONFIGS / f"{config}_rcnn_tiny_fpn.yaml", *options,
        "OUTPUT_DIR", output, *STEPS, *pairs,
    )  # fmt: skip


@pytest.mark.parametrize("role", ["", "test-"])
def test_a_training_ends_before_its_first_step(d2defense, data, tmp_path, role):
    spoiled, sound = data("spoiled"), data("sound", first=8)
    spoiled.cut_short(4)
    other = {"": "test-", "test-": ""}[role]
    options = [*spoiled.options(role), *sound.options(other)]
    outcome = train(d2defense, tmp_path / "out", *options)
    fails(outcome, "1 of 8 images", "4.jpg: cannot be read")
    assert not (tmp_path / "out" / "metrics.json").exists()
    outcome = train(d2defense, tmp_path / "out", *options, "--skip-unusable")
    assert outcome.code == 0, outcome.err
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    images = {name: one["images"] for name, one in provenance["datasets"].items()}
    assert images == {str(spoiled.json_file): 7, str(sound.json_file): 8}


def repair(d2defense: Callable, checkpoint: Path, output: Path, *options: str) -> object:
    return d2defense("repair", checkpoint, *options, "--output", output, "--opts", *SHORT)


def test_a_repair_ends_before_its_first_step(d2defense, data, untrained_checkpoint, tmp_path):
    spoiled, sound = data("spoiled"), data("sound", first=8)
    spoiled.cut_short(4)
    output = tmp_path / "repaired"
    for options in (
        spoiled.options(),
        [*sound.options(), *spoiled.options("test-")],
        [*spoiled.options(), "--no-report"],
    ):
        outcome = repair(d2defense, untrained_checkpoint, output, *options)
        fails(outcome, "1 of 8 images", "4.jpg: cannot be read")
        assert not output.exists()
    options = [*spoiled.options(), "--no-report", "--skip-unusable"]
    assert repair(d2defense, untrained_checkpoint, output, *options).code == 0
    assert (output / "model_final.pth").is_file()


def test_a_test_set_that_a_repair_could_not_be_measured_on(
    d2defense, data, untrained_checkpoint, tmp_path
):
    output = tmp_path / "repaired"
    sound, classes, crowds = data("a"), data("b", first=8), data("c", first=16)
    classes.document["categories"].append({"id": 8, "name": "more"})
    classes.write()
    for annotation in crowds.annotations:
        annotation["iscrowd"] = 1
    crowds.write()
    for test, reason in ((classes, "has 8 classes"), (crowds, "no image shows an object")):
        options = [*sound.options(), *test.options("test-")]
        fails(repair(d2defense, untrained_checkpoint, output, *options), reason)
        assert not output.exists()
    fails(repair(d2defense, untrained_checkpoint, output, *crowds.options()), "no image shows")


def as_run_length(data: Data) -> None:
    for annotation in data.annotations:
        x, y, width, height = map(int, annotation["bbox"])
        mask = np.zeros((128, 128), np.uint8)
        mask[y : y + height, x : x + width] = 1
        edges = np.flatnonzero(np.diff(mask.flatten(order="F"))) + 1
        counts = np.diff([0, *edges, mask.size]).tolist()
        annotation["segmentation"] = {"size": [128, 128], "counts": counts}
    data.write()


def test_run_length_masks_train_a_mask_detector(d2defense, data, mask_checkpoint, tmp_path):
    masks, test = data("masks"), data("test", first=8)
    as_run_length(masks)
    as_run_length(test)
    outcome = repair(
        d2defense, mask_checkpoint, tmp_path / "repaired", *masks.options(), "--no-report"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("training takes bitmasks") == 1
    options = [*masks.options(), *test.options("test-")]
    outcome = train(d2defense, tmp_path / "out", *options, config="mask")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["INPUT"]["MASK_FORMAT"] == "bitmask"
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert "segm/AP" in json.loads(lines[-1])


def test_a_mask_detector_is_not_trained_without_masks(d2defense, data, mask_checkpoint, tmp_path):
    boxes, masks = data("boxes"), data("masks", first=8)
    for annotation in boxes.annotations[1:4]:
        annotation["segmentation"] = []
    boxes.write()
    reason = "annotations with no mask: 3 (2, 3, 4), which MODEL.MASK_ON needs"
    fails(repair(d2defense, mask_checkpoint, tmp_path / "r", *boxes.options()), reason)
    for role, other in (("", "test-"), ("test-", "")):
        options = [*boxes.options(role), *masks.options(other)]
        fails(train(d2defense, tmp_path / "out", *options, config="mask"), reason)
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()
    # Boxes are all that an evaluation of boxes needs.
    assert d2defense("evaluate", mask_checkpoint, *boxes.options()).code == 0


def test_sigmas_of_other_keypoints_are_found_wrong_before_the_training(d2defense, data, tmp_path):
    points = data("points")
    for category in points.document["categories"]:
        category["keypoints"] = ["a", "b"]
    for annotation in points.annotations:
        x, y, *_ = annotation["bbox"]
        annotation["keypoints"] = [x, y, 2, x + 1, y + 1, 2]
    points.write()
    pairs = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "2"]
    options = [*points.options(), *points.options("test-")]
    outcome = train(d2defense, tmp_path / "out", *options, *pairs)
    fails(outcome, "evaluating 2 keypoints needs as many TEST.KEYPOINT_OKS_SIGMAS")


def test_a_registered_dataset_has_its_images_looked_at_too(d2defense, data, specimen, tmp_path):
    from detectron2.data.datasets import register_coco_instances

    spoiled = data("spoiled")
    spoiled.cut_short(3)
    register_coco_instances("mine", {}, str(spoiled.json_file), str(spoiled.folder))
    try:
        outcome = d2defense("evaluate", specimen("clean_0"), "--dataset", "mine")
        fails(outcome, "mine: 1 of 8 images cannot be used", "3.jpg")
        outcome = train(d2defense, tmp_path / "out", "DATASETS.TRAIN", "('mine',)")
        fails(outcome, "mine: 1 of 8 images cannot be used", "3.jpg")
    finally:
        for catalogue in (DatasetCatalog, MetadataCatalog):
            catalogue.remove("mine")
