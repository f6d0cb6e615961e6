# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou

from d2defense.ops import class_probability, foreground, intersection_over_union, objectness


def test_objectness_is_the_sigmoid():
    assert objectness(torch.tensor([0.0, math.log(3)])).tolist() == pytest.approx([0.5, 0.75])


def test_foreground_is_one_minus_the_background_probability():
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    expected = 1 - logits.double().softmax(1)[:, -1]
    torch.testing.assert_close(foreground(logits), expected)


def test_a_tiny_foreground_probability_keeps_its_digits():
    assert float(foreground(torch.tensor([0.0, 60.0]))) == pytest.approx(math.exp(-60), rel=1e-12)


def test_class_probability_is_the_softmax():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = logits.double().softmax(1)[:, 1]
    torch.testing.assert_close(class_probability(logits, 1), expected)


def test_iou_agrees_with_torchvision():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(30, 2, generator=generator, dtype=torch.float64) * 50
    boxes = torch.cat([corners, corners + 1 + torch.rand(30, 2, generator=generator) * 40], 1)
    torch.testing.assert_close(
        intersection_over_union(boxes[:20], boxes[20:]), box_iou(boxes[:20], boxes[20:])
    )


def test_boxes_without_area_have_no_iou():
    boxes = torch.tensor([[5.0, 5, 1, 1], [3, 3, 3, 3], [0, 0, 4, 4]])
    overlap = intersection_over_union(boxes, boxes)
    assert overlap.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
