# SPDX-License-Identifier: Apache-2.0
"""Images without their objects, for what must find a free place on them."""

from __future__ import annotations

import pytest
import torch

from d2defense.detection import CleanImage
from d2defense.detection.search.arms import all_goals
from d2defense.detection.search.room import emptied, with_room

BOXES = torch.tensor([[10.5, 20, 30, 44.2], [50, 0, 64, 12]])


def scene(boxes: torch.Tensor = BOXES, seed: int = 1) -> CleanImage:
    """A grey ramp, brighter to the right, with red objects."""
    pixels = torch.arange(64).repeat(3, 48, 1) * 2
    for x1, y1, x2, y2 in boxes.round().long().tolist():
        pixels[:, y1:y2, x1:x2] = torch.tensor([250, 0, 0])[:, None, None]
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    return CleanImage("", pixels.to(torch.uint8), boxes, classes, seed)


def test_objects_are_painted_over_with_what_surrounds_them():
    image = scene()
    empty = emptied(image)
    assert len(empty.boxes) == len(empty.classes) == 0
    assert empty.image.dtype == torch.uint8
    ramp = scene(BOXES[:0]).image.float()
    # Inside of the image the ramp is restored; at its end there is no pixel to the right.
    inside = (slice(None), slice(None), slice(0, 48))
    assert (empty.image.float()[inside] - ramp[inside]).abs().max() <= 1
    assert (empty.image[0, :14, 49:].float() - 98).abs().max() < 30
    # The image itself stays as it was.
    assert torch.equal(image.image, scene().image)


@pytest.mark.parametrize("box", [[0.0, 0, 64, 48], [-5.0, 10, 70, 20], [60.0, 40, 80, 60]])
def test_objects_that_leave_the_image_are_painted_over_as_well(box):
    empty = emptied(scene(torch.tensor([box]).clamp(min=0)))
    assert empty.image.shape == (3, 48, 64)
    assert len(empty.boxes) == 0


def test_every_second_image_by_its_seed_is_emptied_where_an_effect_may_be_anywhere():
    images = [scene(seed=seed) for seed in (4, 7, 8, 9)]
    assert [len(each.boxes) for each in with_room(images)] == [2, 0, 2, 0]
    for goal in all_goals(["sign"]):
        shown = goal.scenes(images)
        assert [len(each.boxes) for each in shown] == (
            [2, 0, 2, 0] if goal.effect.anywhere else [2, 2, 2, 2]
        )
