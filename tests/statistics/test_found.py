# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from d2defense.statistics import attack_succeeded, attack_success_rate, found_objects

TARGETS = torch.tensor([[0.0, 0, 100, 100], [200, 200, 300, 300]])
CLASSES = torch.tensor([1, 2])


def found(*detections: tuple, classes=CLASSES) -> list[bool]:
    """Detections are (box, class, score)."""
    boxes = torch.tensor([box for box, _, _ in detections], dtype=torch.float32).reshape(-1, 4)
    kinds = torch.tensor([kind for _, kind, _ in detections], dtype=torch.int64)
    scores = torch.tensor([score for _, _, score in detections], dtype=torch.float32)
    return found_objects(TARGETS, classes, boxes, kinds, scores).tolist()


def test_right_class_place_and_score():
    assert found(((0, 0, 100, 100), 1, 0.9)) == [True, False]
    assert found(((0, 0, 100, 100), 1, 0.9), ((210, 200, 300, 300), 2, 0.6)) == [True, True]


def test_wrong_class_counts_only_where_classes_do_not_matter():
    assert found(((0, 0, 100, 100), 2, 0.9)) == [False, False]
    assert found(((0, 0, 100, 100), 2, 0.9), classes=None) == [True, False]


@pytest.mark.parametrize(("score", "counts"), [(0.49, False), (0.5, True), (0.51, True)])
def test_score_from_a_half_on(score, counts):
    assert found(((0, 0, 100, 100), 1, score))[0] == counts


@pytest.mark.parametrize(
    ("box", "counts"),
    [
        ((0, 0, 100, 49), False),  # IoU 0.49
        ((0, 0, 100, 50), True),  # IoU 0.5
        ((0, 0, 100, 201), False),  # IoU 100 / 201
        ((50, 0, 150, 100), False),  # IoU 1 / 3
    ],
)
def test_overlap_from_a_half_on(box, counts):
    assert found((box, 1, 0.9))[0] == counts


def test_weak_overlap_and_weak_score_of_two_detections_do_not_add_up():
    assert found(((0, 0, 100, 100), 1, 0.4), ((60, 60, 100, 100), 1, 0.9)) == [False, False]


def test_one_detection_may_find_two_objects():
    targets = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 90]])
    detection = torch.tensor([[0.0, 0, 100, 95]])
    both = found_objects(targets, None, detection, torch.tensor([0]), torch.tensor([0.9]))
    assert both.tolist() == [True, True]


def test_nothing_detected_or_nothing_there():
    assert found() == [False, False]
    nothing = found_objects(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64),
        TARGETS, CLASSES, torch.ones(2),
    )  # fmt: skip
    assert nothing.shape == (0,)


@pytest.mark.parametrize(
    ("clean", "triggered", "rate"),
    [
        ([1, 1, 1, 1], [1, 0, 0, 0], 0.75),
        ([1, 1, 0, 0], [1, 1, 0, 0], 0.0),
        ([1, 1, 0, 0], [0, 0, 0, 0], 1.0),
        # What was not found without the trigger says nothing about the attack.
        ([1, 0, 0, 0], [1, 1, 1, 0], 0.0),
        ([0, 0], [1, 1], None),
        ([], [], None),
    ],
)
def test_attack_success_rate(clean, triggered, rate):
    assert attack_success_rate(torch.tensor(clean).bool(), torch.tensor(triggered).bool()) == rate


@pytest.mark.parametrize(
    ("asr", "succeeded"), [(0.0, False), (0.499, False), (0.5, True), (1.0, True), (None, None)]
)
def test_an_attack_succeeds_from_one_half_on(asr, succeeded):
    assert attack_succeeded(asr) is succeeded


def test_an_object_of_unknown_class_accepts_any():
    one = ((0, 0, 100, 100), 5, 0.9)
    other = ((200, 200, 300, 300), 5, 0.9)
    assert found(one, other, classes=torch.tensor([-1, 2])) == [True, False]


def test_objects_are_found_on_their_own_image_only():
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 100], [200, 200, 300, 300]])
    images = (torch.tensor([0, 1, 1]), torch.tensor([1]))
    detection = (boxes[:1], torch.tensor([1]), torch.tensor([0.9]))
    assert found_objects(boxes, None, *detection, images).tolist() == [False, True, False]
