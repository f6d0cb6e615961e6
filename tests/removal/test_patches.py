# SPDX-License-Identifier: Apache-2.0
"""Patch augmentation changes pixels of objects and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from d2defense.config import get_d2defense_cfg, merge_overrides
from d2defense.removal import PatchAugmentation, RemovalTrainer
from d2defense.removal.patches import PatchAugmentedMapper
from d2defense.triggers import Patch

BOXES = [[10, 12, 50, 62], [70, 20, 120, 60]]


@pytest.fixture
def record(tmp_path):
    import cv2

    path = tmp_path / "grey.png"
    cv2.imwrite(str(path), np.full((96, 128, 3), 128, np.uint8))
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": index, "iscrowd": 0}
        for index, box in enumerate(BOXES)
    ]
    crowd = {"bbox": [0, 70, 128, 96], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2}
    return {
        "file_name": str(path),
        "image_id": 1,
        "height": 96,
        "width": 128,
        "annotations": [*annotations, crowd | {"iscrowd": 1}],
    }


def mapper_with(**options) -> PatchAugmentedMapper:
    patches = PatchAugmentation(**options)
    return PatchAugmentedMapper(
        is_train=True, augmentations=[], image_format="BGR", patches=patches
    )


def changed_pixels(mapped) -> np.ndarray:
    return (mapped["image"].numpy() != 128).any(axis=0)


def inside(box) -> np.ndarray:
    mask = np.zeros((96, 128), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_patches_lie_on_objects_and_labels_stay_true(record):
    mapper = mapper_with(image_share=1.0, object_share=1.0, overlay_share=0.0)
    np.random.seed(0)
    for _ in range(30):
        mapped = mapper(record)
        changed = changed_pixels(mapped)
        for box in BOXES:
            region = changed & inside(box)
            height, width = box[3] - box[1], box[2] - box[0]
            rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
            assert 1 <= np.ptp(columns) + 1 <= 0.3 * width + 1
            assert 1 <= np.ptp(rows) + 1 <= 0.3 * height + 1
        assert not (changed & ~inside(BOXES[0]) & ~inside(BOXES[1])).any()
        instances = mapped["instances"]
        assert instances.gt_boxes.tensor.tolist() == BOXES
        assert instances.gt_classes.tolist() == [0, 1]


def test_shares_are_those_asked_for(record):
    mapper = mapper_with(image_share=0.5, object_share=0.7)
    np.random.seed(1)
    images = objects = 0
    for _ in range(600):
        changed = changed_pixels(mapper(record))
        bearing = [bool((changed & inside(box)).any()) for box in BOXES]
        images += any(bearing)
        objects += sum(bearing)
    # Half of the images, and 0.7 of their objects; an image of which no object bears a patch is
    # not told apart from one left alone.
    assert objects / 1200 == pytest.approx(0.5 * 0.7, abs=0.05)
    assert images / 600 == pytest.approx(0.5 * (1 - 0.3**2), abs=0.06)


def test_no_two_draws_are_alike_and_a_seed_repeats_them(record):
    mapper = mapper_with(image_share=1.0, object_share=1.0)

    def draws(seed: int) -> list[torch.Tensor]:
        np.random.seed(seed)
        return [mapper(record)["image"] for _ in range(5)]

    first = draws(3)
    assert len({image.numpy().tobytes() for image in first}) == 5
    assert all(map(torch.equal, first, draws(3)))


def test_overlays_cover_the_whole_box_and_let_the_object_shine_through(record):
    mapper = mapper_with(
        image_share=1.0, object_share=1.0, overlay_share=1.0, overlay_opacity=(0.2, 0.3),
        patterns=("solid", "noise", "mosaic"),
    )  # fmt: skip
    np.random.seed(4)
    largest = 0
    for _ in range(20):
        image = mapper(record)["image"].numpy().astype(int)
        change = np.abs(image - 128).max(axis=0)
        largest = max(largest, change.max())
        assert not change[~inside(BOXES[0]) & ~inside(BOXES[1])].any()
        for x0, y0, x1, y1 in BOXES:
            assert (change[y0:y1, x0:x1] > 0).mean() > 0.8
    # A pixel moves by at most the opacity's share of the 128 levels up or down.
    assert 0.2 * 128 < largest <= 0.3 * 128 + 1


def test_overlays_are_the_share_asked_for(record):
    mapper = mapper_with(image_share=1.0, object_share=1.0, overlay_share=0.25)
    np.random.seed(5)
    covered = []
    for _ in range(200):
        changed = changed_pixels(mapper(record))
        covered += [changed[y0:y1, x0:x1].mean() > 0.5 for x0, y0, x1, y1 in BOXES]
    assert np.mean(covered) == pytest.approx(0.25, abs=0.07)


def test_known_triggers_are_the_share_asked_for_and_no_two_are_alike(record):
    patches = PatchAugmentation(known=(Patch("green", color=(0, 255, 0), size=(0.2, 0.2)),))
    np.random.seed(0)
    drawn = [patches._draw()[0] for _ in range(400)]
    known = [each for each in drawn if each.color == (0, 255, 0)]
    assert len(known) == pytest.approx(200, abs=40)
    sides = [side for each in known for side in each.size]
    assert 0.12 < min(sides) < 0.15 and 0.35 < max(sides) < 0.41
    centred = [each for each in known if each.placement == "center"]
    assert len(centred) == pytest.approx(100, abs=30)
    assert len({each.position for each in known}) > 70


def test_nothing_is_stamped_at_share_zero(record):
    mapper = mapper_with(image_share=0.0)
    assert not any(changed_pixels(mapper(record)).any() for _ in range(20))


@pytest.mark.parametrize(
    "options",
    [
        {"image_share": 1.5},
        {"object_share": -0.1},
        {"overlay_share": 2},
        {"known_share": 1.1},
        {"size": (0.3, 0.2)},
        {"overlay_opacity": (0, 0.2)},
        {"cells": (0, 4)},
        {"patterns": ()},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="patch augmentation"):
        PatchAugmentation(**options)


@pytest.mark.parametrize(
    ("method", "augmentation", "stamps"),
    [
        ("patch_augmentation", "", True),
        ("vanilla", "", False),
        ("renewal", "", False),
        ("renewal", "patch_augmentation", True),
        ("patch_augmentation", "vanilla", False),
    ],
)
def test_patches_belong_to_their_method_and_to_whoever_asks_for_them(
    make_tiny_cfg, method, augmentation, stamps
):
    cfg = make_tiny_cfg("REMOVAL.METHOD", method, "REMOVAL.AUGMENTATION", augmentation)
    assert isinstance(RemovalTrainer.build_mapper(cfg), PatchAugmentedMapper) == stamps


@pytest.mark.parametrize("value", [True, False])
def test_the_switch_of_before_is_refused_with_what_to_write(value):
    pairs = ["REMOVAL.PATCH_AUGMENTATION.ENABLED", str(value)]
    with pytest.raises(ValueError, match=r"was renamed to REMOVAL\.AUGMENTATION") as refused:
        merge_overrides(get_d2defense_cfg(), pairs)
    assert "\n" not in str(refused.value)
