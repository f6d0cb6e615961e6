# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from d2defense.statistics import extra_detections, found_objects, why_not_taken

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


def extra(*detections: tuple) -> int:
    """How many detections, (box, score), lie on no object."""
    boxes = torch.tensor([box for box, _ in detections], dtype=torch.float32).reshape(-1, 4)
    return extra_detections(TARGETS, boxes, torch.tensor([score for _, score in detections]))


@pytest.mark.parametrize(
    ("detections", "count"),
    [
        ([], 0),
        ([((0, 0, 100, 100), 0.9), ((200, 200, 300, 300), 0.9)], 0),
        ([((120, 0, 180, 60), 0.9), ((120, 60, 180, 120), 0.5)], 2),
        # Too weak to count.
        ([((120, 0, 180, 60), 0.49)], 0),
        # IoU of one half with an object, and of a little less.
        ([((0, 0, 100, 50), 0.9), ((0, 0, 100, 49), 0.9)], 1),
        # A second one on an object is on an object.
        ([((0, 0, 100, 100), 0.9), ((0, 0, 100, 90), 0.8)], 0),
    ],
)
def test_extra_detections_lie_on_no_object(detections, count):
    assert extra(*detections) == count


def test_without_objects_every_detection_is_extra():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 9, 9]])
    assert extra_detections(torch.zeros(0, 4), boxes, torch.tensor([0.9, 0.6, 0.1])) == 2


@pytest.mark.parametrize(
    ("asr", "control_asr", "reason"),
    [
        (0.5, None, None),
        (1.0, 0.0, None),
        (0.499, None, "its ASR is 0.499, under 0.5"),
        (0.0, 0.0, "its ASR is 0.000, under 0.5"),
        (None, None, "there is no ASR"),
        (None, 0.2, "there is no ASR"),
        # In floating numbers 0.7 - 0.4 is less than 0.3.
        (0.7, 0.4, None),
        (0.8, 0.5, None),
        (0.69, 0.4, "its ASR is 0.690, less than 0.3 above the control's 0.400"),
    ],
)
def test_an_attack_takes_from_one_half_on_and_well_above_its_control(asr, control_asr, reason):
    given = why_not_taken(asr, control_asr)
    assert given is None if reason is None else given.startswith(reason)


def test_an_object_of_unknown_class_accepts_any():
    one = ((0, 0, 100, 100), 5, 0.9)
    other = ((200, 200, 300, 300), 5, 0.9)
    assert found(one, other, classes=torch.tensor([-1, 2])) == [True, False]


def test_objects_are_found_on_their_own_image_only():
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 100], [200, 200, 300, 300]])
    images = (torch.tensor([0, 1, 1]), torch.tensor([1]))
    detection = (boxes[:1], torch.tensor([1]), torch.tensor([0.9]))
    assert found_objects(boxes, None, *detection, images).tolist() == [False, True, False]
