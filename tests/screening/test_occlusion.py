# SPDX-License-Identifier: Apache-2.0
"""What is hidden is what its surroundings suggest, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from d2defense.screening.occlusion import hide_middle, look_again


def test_a_patch_on_an_even_gradient_is_gone():
    ramp = torch.arange(64.0).repeat(3, 64, 1) * 3
    stamped = ramp.clone()
    stamped[:, 28:36, 28:36] = 255
    restored = hide_middle(stamped, [16, 16, 48, 48], 0.3)
    assert (restored - ramp).abs().max() < 4
    assert (stamped - ramp).abs().max() > 140


@pytest.mark.parametrize("side", [64, 640])
def test_only_the_middle_changes(side):
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    box = [side / 4, side / 4, side / 2, side / 2]
    hidden = hide_middle(image, box, 0.5)
    changed = (hidden != image).any(dim=0).nonzero()
    low, high = changed.min(dim=0).values, changed.max(dim=0).values
    assert (low >= side * 5 // 16).all()
    assert (high < side * 7 // 16).all()
    assert hidden.dtype == torch.uint8


@pytest.mark.parametrize("box", [[-5, -5, 3, 3], [60, 60, 80, 90], [10, 10, 10.2, 10.1]])
def test_boxes_at_the_border_and_tiny_ones(box):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert hide_middle(image, box, 0.34).shape == image.shape


def test_a_second_look_costs_the_pixels_that_it_takes(opened, scenes):
    model, cfg = opened("clean_0")
    (scene,) = scenes(cfg, 1)
    boxes = torch.tensor([[20.0, 20.0, 50.0, 50.0]])
    one = look_again(model, scene["image"], boxes, [0.34])
    two = look_again(model, scene["image"], boxes.repeat(2, 1), [0.2, 0.34])
    assert one.logits.shape == (1, 1, 8)
    assert two.logits.shape == (2, 2, 8)
    assert 0 < one.passes < 0.5
    assert two.passes == pytest.approx(4 * one.passes)


def test_places_of_two_sizes_are_judged_as_each_by_itself(opened, scenes):
    model, cfg = opened("clean_0")
    (scene,) = scenes(cfg, 1)
    places = [[20.0, 20.0, 38.0, 38.0], [10.0, 30.0, 100.0, 110.0], [60.0, 20.0, 78.0, 38.0]]
    boxes = torch.tensor(places)
    together = look_again(model, scene["image"], boxes, [0.2, 0.34])
    alone = [look_again(model, scene["image"], boxes[[i]], [0.2, 0.34]) for i in range(3)]
    for place, each in zip(together.logits, alone, strict=True):
        assert torch.allclose(place, each.logits[0], atol=1e-4)
    # A small place costs no more for lying beside a large one.
    assert together.passes == pytest.approx(sum(each.passes for each in alone))
