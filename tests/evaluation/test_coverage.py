# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from d2defense.attacks import Objects
from d2defense.evaluation import attack_coverage, describe_coverage

LARGE, SMALL = [0.0, 0, 30, 40], [8000.3, 50, 8030.3, 59]
PLACE, NOWHERE = torch.tensor([LARGE]), torch.zeros(0, 4)


def objects(*pairs: tuple[list[float], int]) -> Objects:
    boxes = torch.tensor([box for box, _ in pairs]).reshape(-1, 4)
    return Objects(boxes, torch.tensor([kind for _, kind in pairs], dtype=torch.int64))


IMAGES = [
    (objects((LARGE, 0), (SMALL, 0), (SMALL, 1)), PLACE),
    (objects((LARGE, 2)), NOWHERE),
    (objects(), NOWHERE),
]


@pytest.mark.parametrize(
    ("name", "options", "left_out"),
    [
        # Images without a place, small objects, attacked classes, those of them without victims.
        ("disappearance", [], (2, 0, 4, 2)),
        ("disappearance", ["MIN_SIZE", 10], (2, 2, 4, 3)),
        ("disappearance", ["MIN_SIZE", 10, "VICTIM_CLASS", "c1"], (2, 1, 1, 1)),
        ("misclassification", ["MIN_SIZE", 10, "TARGET_CLASS", "c0"], (2, 1, 3, 3)),
        ("ghost", ["MIN_SIZE", 10, "TARGET_CLASS", "c0"], (2, 0, 0, 0)),
        ("clean_label_ghost", ["MIN_SIZE", 10, "TARGET_CLASS", "c0"], (2, 0, 0, 0)),
    ],
)
def test_what_is_left_out_is_counted(make_effect, name, options, left_out):
    assert attack_coverage(make_effect(name, *options), IMAGES, num_classes=4) == {
        "images": 3,
        "images_without_places": left_out[0],
        "objects": 4,
        "small_objects": left_out[1],
        "classes": left_out[2],
        "classes_without_victims": left_out[3],
    }


def test_what_is_left_out_is_said(make_effect):
    coverage = attack_coverage(make_effect("disappearance", "MIN_SIZE", 10), IMAGES, 4)
    assert describe_coverage(coverage) == (
        "images without a place for the trigger: 2 of 3; "
        "objects smaller than ATTACK.MIN_SIZE: 2 of 4; "
        "classes without victims: 3 of 4"
    )
    everything = attack_coverage(make_effect("disappearance"), IMAGES[:1], 2)
    assert describe_coverage(everything) == ""
