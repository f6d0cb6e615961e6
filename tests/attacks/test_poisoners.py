# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from d2defense.attacks import image_seed, select_poisoned_images
from d2defense.config import get_d2defense_cfg
from d2defense.registry import ATTACK_REGISTRY


def dataset(count: int, objects: int = 1, crowd: bool = False) -> list[dict]:
    annotation = {"bbox": [0, 0, 9, 9], "iscrowd": int(crowd)}
    return [
        {"file_name": f"/data/{index:04d}.jpg", "annotations": [dict(annotation)] * objects}
        for index in range(count)
    ]


@pytest.mark.parametrize(("rate", "count"), [(0.05, 10), (0.0, 0), (1.0, 200), (0.033, 7)])
def test_exact_share_of_the_images_is_chosen(rate, count):
    chosen = select_poisoned_images(dataset(200), rate, seed=0)
    assert len(chosen) == count
    assert chosen <= {record["file_name"] for record in dataset(200)}


def test_choice_depends_on_the_seed_and_not_on_the_order():
    records = dataset(200)
    chosen = select_poisoned_images(records, 0.05, seed=0)
    assert select_poisoned_images(records[::-1], 0.05, seed=0) == chosen
    assert select_poisoned_images(records, 0.05, seed=1) != chosen


def test_only_images_that_show_an_object_are_chosen():
    records = dataset(10)
    for index, record in enumerate(records[:8]):
        record["annotations"] = dataset(1, crowd=True)[0]["annotations"] if index % 2 else []
    # The rate counts all images, the choice falls on those with an object to stamp.
    assert select_poisoned_images(records, 0.2, seed=3) == {"/data/0008.jpg", "/data/0009.jpg"}
    with pytest.raises(ValueError, match="asks for 3 images, but only 2 of 10"):
        select_poisoned_images(records, 0.3, seed=3)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_that_are_no_share_are_refused(rate):
    with pytest.raises(ValueError, match="POISONING_RATE"):
        select_poisoned_images(dataset(10), rate, seed=0)


def test_object_disappearance_drops_what_it_stamps_and_leaves_crowds():
    first, second = {"bbox": [0, 0, 1, 1]}, {"bbox": [5, 5, 1, 1], "iscrowd": 0}
    crowd = {"bbox": [9, 9, 1, 1], "iscrowd": 1}
    attack = ATTACK_REGISTRY.get("oda")(get_d2defense_cfg())
    stamped, kept = attack.poison([first, crowd, second])
    assert stamped == [first, second]
    assert kept == [crowd]


def test_image_seeds_differ_between_images_and_agree_between_folders():
    names = [f"img_{index:06d}_left_camera_undistorted.png" for index in range(500)]
    assert len({image_seed(name) for name in names}) == len(names)
    assert image_seed("/a/b/one.png") == image_seed("C:\\c\\one.png") == image_seed("one.png")
    assert image_seed("ä" * 200 + ".png") >= 0
