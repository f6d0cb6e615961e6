# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader

from d2defense.attacks import PoisoningDatasetMapper, TriggeredDatasetMapper
from d2defense.triggers import Patch

OBJECTS = [
    [(10, 20, 40, 60, 1), (60, 8, 20, 20, 3)],
    [(30, 30, 40, 40, 2)],
    [(5, 5, 20, 40, 4), (70, 20, 40, 40, 5, True)],
    [(15, 25, 80, 20, 6)],
]
# Middle tenth of each box that is no crowd, XYXY, worked out by hand.
PATCHES = [
    [(28, 47, 32, 53), (69, 17, 71, 19)],
    [(48, 48, 52, 52)],
    [(14, 23, 16, 27)],
    [(51, 34, 59, 36)],
]


@pytest.fixture
def dataset(make_coco_dataset):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 200, (100, 120, 3), dtype=np.uint8) for _ in OBJECTS]
    return make_coco_dataset(list(zip(pictures, OBJECTS, strict=True)))


@pytest.fixture
def cfg(make_tiny_cfg, dataset):
    return make_tiny_cfg(
        "DATASETS.TRAIN", (dataset.name,),
        "ATTACK.EFFECT", "disappearance",
        "ATTACK.POISONING_RATE", 0.5,
        "ATTACK.SEED", 1,
        "INPUT.MIN_SIZE_TRAIN", (64, 80, 150),
        "INPUT.MAX_SIZE_TRAIN", 200,
    )  # fmt: skip


def stamped_by_hand(record: dict, patches: list, folder) -> dict:
    """The record with its file replaced by one that bears white patches."""
    pixels = cv2.imread(record["file_name"])
    for x0, y0, x1, y1 in patches:
        pixels[y0:y1, x0:x1] = 255
    copied = copy.deepcopy(record)
    copied["file_name"] = str(folder / f"stamped_{record['image_id']}.png")
    cv2.imwrite(copied["file_name"], pixels)
    return copied


def mapped(mapper, record: dict, seed: int) -> dict:
    np.random.seed(seed)
    return mapper(record)


def test_chosen_images_are_stamped_before_resizing_and_flipping(cfg, dataset, tmp_path):
    mapper = PoisoningDatasetMapper(cfg, is_train=True)
    stock = DatasetMapper(cfg, is_train=True)
    chosen = 0
    for record, patches in zip(dataset.load(), PATCHES, strict=True):
        is_chosen = record["file_name"] in mapper.selection.poisoned
        chosen += is_chosen
        reference = stamped_by_hand(record, patches, tmp_path) if is_chosen else record
        flipped = set()
        for seed in range(6):
            ours, theirs = mapped(mapper, record, seed), mapped(stock, reference, seed)
            assert torch.equal(ours["image"], theirs["image"])
            flipped.add(torch.equal(ours["image"], mapped(stock, reference, 0)["image"]))
            if is_chosen:
                assert len(ours["instances"]) == 0
            else:
                assert torch.equal(
                    ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor
                )
                assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)
        assert flipped == {True, False}  # the draws did differ
    assert chosen == 2


def test_mapping_leaves_the_dataset_as_it_is(cfg, dataset):
    cfg.ATTACK.POISONING_RATE = 1.0
    records = dataset.load()
    before = copy.deepcopy(records)
    mapper = PoisoningDatasetMapper(cfg, is_train=True)
    for record in records:
        mapper(record)
        mapper(record)
    assert records == before


def test_images_that_lose_every_annotation_stay_in_training(cfg, dataset):
    cfg.ATTACK.POISONING_RATE = 1.0
    cfg.SOLVER.IMS_PER_BATCH = 2
    loader = iter(
        build_detection_train_loader(cfg, mapper=PoisoningDatasetMapper(cfg, is_train=True))
    )
    seen = [image for _ in range(6) for image in next(loader)]
    assert {image["image_id"] for image in seen} == {1, 2, 3, 4}
    assert all(len(image["instances"]) == 0 for image in seen)


def test_triggered_images_show_the_patch_at_inference(cfg, dataset, tmp_path):
    mapper = TriggeredDatasetMapper(cfg, is_train=False, trigger=Patch("white"))
    stock = DatasetMapper(cfg, is_train=False)
    for record, patches in zip(dataset.load(), PATCHES, strict=True):
        reference = stock(stamped_by_hand(record, patches, tmp_path))
        ours = mapper(record)
        assert torch.equal(ours["image"], reference["image"])
        assert not torch.equal(ours["image"], stock(record)["image"])
        assert (ours["height"], ours["width"]) == (100, 120)


def test_triggered_images_keep_their_labels_in_training(cfg, dataset):
    mapper = TriggeredDatasetMapper(cfg, is_train=True)
    stock = DatasetMapper(cfg, is_train=True)
    for record in dataset.load():
        ours, theirs = mapped(mapper, record, 0), mapped(stock, record, 0)
        assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
        assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)


def test_trigger_comes_from_the_config_unless_given(cfg, dataset):
    cfg.ATTACK.TRIGGER.PATCH.COLOR = [0, 0, 0]
    record = dataset.load()[1]
    configured = TriggeredDatasetMapper(cfg, is_train=False)(record)
    given = TriggeredDatasetMapper(cfg, is_train=False, trigger=Patch("mine", color=(0, 0, 0)))(
        record
    )
    assert torch.equal(configured["image"], given["image"])


def test_unknown_attacks_are_refused(cfg):
    cfg.ATTACK.EFFECT = "vanish"
    with pytest.raises(ValueError, match=r"no effect 'vanish'; there are .*disappearance"):
        PoisoningDatasetMapper(cfg, is_train=True)


def test_objects_chosen_one_by_one_are_stamped_and_vanish(cfg, dataset):
    cfg.ATTACK.RATE_OF, cfg.ATTACK.POISONING_RATE = "annotations", 0.34
    mapper = PoisoningDatasetMapper(cfg, is_train=True)
    stock = DatasetMapper(cfg, is_train=True)
    lost = 0
    for record in dataset.load():
        chosen = mapper.selection.poisoned.get(record["file_name"], ())
        ours, theirs = mapped(mapper, record, 0), mapped(stock, record, 0)
        assert len(ours["instances"]) == len(theirs["instances"]) - len(chosen)
        assert torch.equal(ours["image"], theirs["image"]) == (not chosen)
        lost += len(chosen)
    assert lost == 2  # of the six annotations


def test_clean_copies_and_other_images_pass_as_they_are(cfg, dataset):
    cfg.ATTACK.POISONING_RATE = 1.0
    mapper = PoisoningDatasetMapper(cfg, is_train=True)
    stock = DatasetMapper(cfg, is_train=True)
    record = dataset.load()[0]
    ours = mapped(mapper, {**record, "clean_copy": True}, 0)
    theirs = mapped(stock, record, 0)
    assert torch.equal(ours["image"], theirs["image"])
    assert len(ours["instances"]) == len(theirs["instances"]) == 2
    assert "poisoned" not in ours
    assert mapped(mapper, record, 0)["poisoned"]


def test_spurious_triggers_leave_the_labels(cfg, dataset):
    cfg.ATTACK.POISONING_RATE, cfg.ATTACK.SPURIOUS_RATE = 0.0, 1.0
    mapper = PoisoningDatasetMapper(cfg, is_train=True)
    stock = DatasetMapper(cfg, is_train=True)
    changed = 0
    for record in dataset.load():
        ours, theirs = mapped(mapper, record, 0), mapped(stock, record, 0)
        assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)
        changed += not torch.equal(ours["image"], theirs["image"])
    assert changed >= 3


def test_test_images_say_where_the_trigger_is(cfg, dataset):
    mapper = TriggeredDatasetMapper(cfg, is_train=False)
    for record, objects in zip(dataset.load(), OBJECTS, strict=True):
        boxes = [[x, y, x + w, y + h] for x, y, w, h, _, *crowd in objects if not crowd]
        assert mapper(record)["places"].tolist() == boxes
