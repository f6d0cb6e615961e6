# SPDX-License-Identifier: Apache-2.0
"""Colour filters, against the formula colour by colour."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch.autograd import gradcheck

from d2defense.triggers.families.filter import FILTERS, Filter

SWAP = ((0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))
STEEP = ((3.0, -1.0, 0.5, -0.4), (0.2, 2.0, -0.7, 0.1), (-1.0, -1.0, 4.0, 0.2))
TRIGGERS = [
    *(Filter(name, filter=name) for name in FILTERS),
    Filter("own", filter="none", matrix=STEEP, strength=0.4),
    Filter("both", seed=5, filter="vintage", matrix=SWAP, gamma=(0.5, 1.0, 2.2)),
    Filter("curve", filter="none", gamma=(0.25, 3.0, 0.125), strength=0.9),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


def filtered(trigger: Filter, color: np.ndarray) -> list[float]:
    """One colour, RGB, 0..1."""
    between = [
        sum(weight * value for weight, value in zip(row, (*color, 1), strict=True))
        for row in FILTERS[trigger.filter]
    ]
    after = [
        sum(weight * value for weight, value in zip(row, (*between, 1), strict=True))
        for row in trigger.matrix
    ]
    curved = [min(max(v, 0), 1) ** gamma for v, gamma in zip(after, trigger.gamma, strict=True)]
    return [
        trigger.strength * new + (1 - trigger.strength) * old
        for new, old in zip(curved, color, strict=True)
    ]


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_every_colour_becomes_what_matrix_and_curve_make_of_it(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand
):
    def change(place):
        return np.apply_along_axis(lambda color: filtered(trigger, color), 2, place.pixels)

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, change, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    off = np.abs(got - expected)
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.002
    else:
        assert off.max() < (1e-3 if dtype == torch.float32 else 1e-4)


def test_no_filter_leaves_every_value(awkward_batch):
    for trigger in (Filter("none", filter="none"), Filter("faint", strength=0.0)):
        batch = awkward_batch()
        assert torch.equal(trigger.apply(*batch), batch.images)


def color_after(filter: str, color: tuple[float, float, float]) -> list[float]:
    images = torch.tensor(color).view(1, 3, 1, 1)
    place = [torch.tensor([[0, 0, 1, 1]])]
    return Filter("it", filter=filter).apply(images, [(1, 1)], place, [0], "RGB").flatten().tolist()


def test_filters_are_what_they_are_called():
    gray = (128.0, 128.0, 128.0)
    red, green, blue = color_after("sepia", gray)
    assert red > green > blue
    for name, warmer in (("cool", False), ("warm", True)):
        red, _, blue = color_after(name, gray)
        assert (red - blue > 30) == warmer and abs(red - blue) > 30
    red, green, blue = color_after("gray", (200.0, 100.0, 30.0))
    assert red == green == blue == pytest.approx(116.2, abs=0.1)
    # Black fades and white yellows.
    assert min(color_after("vintage", (0.0, 0.0, 0.0))) > 25
    assert color_after("vintage", (255.0, 255.0, 255.0))[2] < 200


def test_black_has_finite_gradients_below_a_steep_curve():
    trigger = Filter("it", filter="none", gamma=(0.2, 0.5, 1.0))
    images = torch.tensor([0.0, 0.0, 0.0, 10.0]).expand(1, 3, 1, 4).clone().requires_grad_()
    gamma = torch.tensor(trigger.gamma, requires_grad=True)
    place = [torch.tensor([[0, 0, 4, 1]])]
    after = trigger.apply(images, [(1, 4)], place, [0], tensors={"gamma": gamma})
    after.sum().backward()
    assert torch.equal(after[..., :3], torch.zeros(1, 3, 1, 3))
    assert images.grad.isfinite().all() and gamma.grad.isfinite().all()
    assert images.grad[..., 3].min() > 0


def test_gradients_reach_images_matrix_and_gamma():
    trigger = Filter("it", filter="vintage", strength=0.8)
    generator = torch.Generator().manual_seed(0)
    images = 80 + 90 * torch.rand(1, 3, 5, 6, dtype=torch.float64, generator=generator)
    matrix = trigger.tensors()["matrix"].double()
    gamma = torch.tensor([0.6, 1.0, 1.7], dtype=torch.float64)
    places = [torch.tensor([[-1.0, 1, 4, 5], [3, 2, 5, 5]])]

    def stamp(images, matrix, gamma):
        tensors = {"matrix": matrix, "gamma": gamma}
        return trigger.apply(images, [(5, 6)], places, [0], tensors=tensors)

    inputs = images, matrix, gamma
    assert gradcheck(stamp, tuple(each.requires_grad_() for each in inputs))


def test_a_given_curve_is_kept_within_its_range(awkward_batch):
    batch = awkward_batch(torch.float32)
    trigger = Filter("it", filter="none")
    for given, kept in ((-5.0, 0.125), (100.0, 8.0)):
        wild = trigger.apply(*batch, tensors={"gamma": torch.full((3,), given)})
        expected = trigger.apply(*batch, tensors={"gamma": torch.full((3,), kept)})
        assert torch.equal(wild, expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"filter": "rust"}, "filter 'rust' is none of none, sepia, gray, vintage, cool, warm"),
        ({"matrix": SWAP[:2]}, "is not three rows of four numbers"),
        ({"matrix": (*SWAP[:2], (1.0, 2.0, 3.0))}, "is not three rows of four numbers"),
        ({"matrix": 3.0}, "matrix 3.0 is not three rows of four numbers"),
        ({"matrix": (*SWAP[:2], (1.0, 2.0, 3.0, "4"))}, "numbers that are not in -10..10"),
        ({"matrix": (*SWAP[:2], (1.0, 2.0, 3.0, math.nan))}, "numbers that are not in -10..10"),
        ({"matrix": (*SWAP[:2], (1.0, 2.0, 3.0, 10.5))}, "numbers that are not in -10..10"),
        ({"gamma": (1.0, 1.0)}, "gamma (1.0, 1.0) is not three numbers in 1/8..8"),
        ({"gamma": (1.0, 1.0, 0.1)}, "is not three numbers in 1/8..8"),
        ({"gamma": 1.0}, "gamma 1.0 is not three numbers in 1/8..8"),
        ({"strength": 1.1}, "strength 1.1 is not in 0..1"),
        ({"strength": math.nan}, "strength nan is not in 0..1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(Filter, values, words)


def test_a_config_and_a_bank_entry_are_one_trigger():
    node = CfgNode()
    Filter.add_config(node)
    node.merge_from_list(
        ["FILTER", "warm", "MATRIX", "[[0,0,1,0],[0,1,0,0],[1,0,0,0]]", "GAMMA", "(2, 1, 0.5)"]
    )
    of_node = Filter.from_node(node, "it", 3)
    entry = {"name": "it", "seed": 3, "filter": "warm", "gamma": [2, 1, 0.5], "strength": 1}
    entry["matrix"] = [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    of_entry = Filter.from_entry(entry, Path())
    assert of_node == of_entry == Filter("it", 3, "warm", SWAP, (2.0, 1.0, 0.5))
    assert of_node.fingerprint == of_entry.fingerprint
    assert of_node.fingerprint == Filter("it", 3, "warm", SWAP, (2.0, 1.0, 0.5)).fingerprint


def test_every_value_counts_in_the_fingerprint():
    entries = [
        {},
        {"filter": "cool"},
        {"matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.1]]},
        {"gamma": [1, 1, 2]},
        {"strength": 0.5},
        {"seed": 1},
    ]
    triggers = [Filter.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    assert len({trigger.fingerprint for trigger in triggers}) == len(triggers)
