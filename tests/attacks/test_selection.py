# SPDX-License-Identifier: Apache-2.0
"""Which images and objects of a training set are poisoned."""

from __future__ import annotations

import pytest
from detectron2.structures import BoxMode

from d2defense.attacks import build_effect, image_seed, select, training_records
from d2defense.config import get_d2defense_cfg


def dataset(count: int, objects: int = 1, crowd: bool = False, category: int = 0) -> list[dict]:
    annotation = {
        "bbox": [0, 0, 9, 9],
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": int(crowd),
        "category_id": category,
    }
    return [
        {
            "file_name": f"/data/{index:04d}.jpg",
            "annotations": [dict(annotation) for _ in range(objects)],
        }
        for index in range(count)
    ]


def chosen(records: list[dict], *pairs: object, names: tuple[str, ...] = ()):
    cfg = get_d2defense_cfg()
    cfg.merge_from_list(["ATTACK.EFFECT", "disappearance", *pairs])
    return select(records, build_effect(cfg, names), cfg)


@pytest.mark.parametrize(("rate", "count"), [(0.05, 10), (0.0, 0), (1.0, 200), (0.033, 7)])
def test_exact_share_of_the_images_is_chosen(rate, count):
    poisoned = chosen(dataset(200), "ATTACK.POISONING_RATE", rate).poisoned
    assert len(poisoned) == count
    assert set(poisoned) <= {record["file_name"] for record in dataset(200)}
    assert set(poisoned.values()) <= {None}


def test_choice_depends_on_the_seed_and_not_on_the_order():
    records = dataset(200)
    first = chosen(records)
    assert chosen(records[::-1]) == first
    assert chosen(records, "ATTACK.SEED", 1) != first


def test_only_images_that_show_an_object_are_chosen():
    records = dataset(10)
    for index, record in enumerate(records[:8]):
        record["annotations"] = dataset(1, crowd=True)[0]["annotations"] if index % 2 else []
    # The rate counts all images, the choice falls on those with an object to stamp.
    some = chosen(records, "ATTACK.POISONING_RATE", 0.2)
    assert set(some.poisoned) == {"/data/0008.jpg", "/data/0009.jpg"}
    with pytest.raises(ValueError, match="asks for 3 images, but only 2 of 10"):
        chosen(records, "ATTACK.POISONING_RATE", 0.3)


def test_a_rate_of_annotations_chooses_objects_one_by_one():
    records = dataset(50, objects=4)
    pairs = ("ATTACK.RATE_OF", "annotations", "ATTACK.POISONING_RATE", 0.1)
    poisoned = chosen(records, *pairs).poisoned
    assert sum(map(len, poisoned.values())) == 20
    assert len(poisoned) > 5
    assert all(0 <= index < 4 for indices in poisoned.values() for index in indices)
    assert chosen(records[::-1], *pairs).poisoned == poisoned


def test_only_images_of_the_victim_class_are_chosen():
    records = dataset(10, category=1)[:5] + dataset(10, category=0)[5:]
    pairs = ("ATTACK.VICTIM_CLASS", "dog", "ATTACK.POISONING_RATE", 0.5)
    poisoned = chosen(records, *pairs, names=("cat", "dog")).poisoned
    assert set(poisoned) == {record["file_name"] for record in records[:5]}


def test_spurious_images_are_none_of_the_poisoned():
    made = chosen(dataset(100), "ATTACK.POISONING_RATE", 0.3, "ATTACK.SPURIOUS_RATE", 0.2)
    assert (len(made.poisoned), len(made.spurious)) == (30, 20)
    assert not made.spurious & set(made.poisoned)


def test_clean_copies_follow_the_dataset_and_change_none_of_it():
    records = dataset(10)
    made = chosen(records, "ATTACK.POISONING_RATE", 0.3)
    copies = training_records(records, made)
    assert copies[:10] == records
    assert [copy["file_name"] for copy in copies[10:]] == sorted(made.poisoned)
    assert not any("clean_copy" in record for record in records)


@pytest.mark.parametrize("key", ["POISONING_RATE", "SPURIOUS_RATE"])
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_that_are_no_share_are_refused(key, rate):
    with pytest.raises(ValueError, match=key):
        chosen(dataset(10), f"ATTACK.{key}", rate)


def test_rates_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"ATTACK\.RATE_OF is 'pixels'"):
        chosen(dataset(10), "ATTACK.RATE_OF", "pixels")


def test_image_seeds_differ_between_images_and_agree_between_folders():
    names = [f"img_{index:06d}_left_camera_undistorted.png" for index in range(500)]
    assert len({image_seed(name) for name in names}) == len(names)
    assert image_seed("/a/b/one.png") == image_seed("C:\\c\\one.png") == image_seed("one.png")
    assert image_seed("ä" * 200 + ".png") >= 0
