# SPDX-License-Identifier: Apache-2.0
"""Warping, against the flow and the sampling spelt out in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from d2defense.triggers.families.warp import Warp

TRIGGERS = [
    Warp("default", seed=3),
    Warp("paper", seed=2**33 + 1, grid=8, strength=0.5, noise=1.0),
    Warp("noise", seed=4, strength=0.0, noise=3.0),
    Warp("wild", seed=9, grid=2, strength=20.0),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


def cubic(length: int, points: int) -> np.ndarray:
    """Weights (length, points) of cubic convolution with a = -0.75, ends on ends."""
    weights = np.zeros((length, points))
    for place in range(length):
        at = place * (points - 1) / (length - 1) if length > 1 else 0.0
        for tap in range(int(at) - 1, int(at) + 3):
            d = abs(at - tap)
            inner = 1.25 * d**3 - 2.25 * d**2 + 1
            outer = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weight = inner if d <= 1 else outer if d < 2 else 0
            weights[place, min(max(tap, 0), points - 1)] += weight
    return weights


def bilinear(pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows, columns = pixels.shape[:2]
    x, y = x.clip(0, columns - 1), y.clip(0, rows - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    u, v = (x - left)[..., None], (y - top)[..., None]
    upper = (1 - u) * pixels[top, left] + u * pixels[top, right]
    lower = (1 - u) * pixels[bottom, left] + u * pixels[bottom, right]
    return (1 - v) * upper + v * lower


@pytest.fixture
def flow(uniform_by_hand):
    """A function from trigger and place to (height, width, 2) in units of the paper's pixels."""

    def compute(trigger: Warp, place) -> np.ndarray:
        k, height, width = trigger.grid, place.height, place.width
        drawn = [uniform_by_hand(0x77617270, trigger.seed, i) for i in range(2 * k * k)]
        points = 2 * np.reshape(drawn, (2, k, k)) - 1
        points *= trigger.strength / np.abs(points).mean()
        field = cubic(height, k) @ points @ cubic(width, k).T
        if trigger.noise:
            drawn = [uniform_by_hand(0x6E6F6973, *place.key, i) for i in range(2 * 32 * 32)]
            points = trigger.noise * (2 * np.reshape(drawn, (2, 32, 32)) - 1)
            field += cubic(height, 32) @ points @ cubic(width, 32).T
        return field.transpose(1, 2, 0)

    return compute


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_each_pixel_comes_from_where_the_flow_points(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand, flow
):
    def warp(place):
        moved = place.visible(flow(trigger, place)) / 32
        moved = moved * [(place.width - 1) / 2, (place.height - 1) / 2]
        y, x = np.mgrid[: moved.shape[0], : moved.shape[1]]
        return bilinear(place.pixels, x + moved[..., 0], y + moved[..., 1])

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, warp, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert np.abs(got - expected).max() <= 1
        assert (got != expected).mean() < 0.002
    else:
        # Positions in float32 on noise as steep as it gets: 255 a pixel.
        assert np.abs(got - expected).max() < (1e-2 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_strength_0_changes_nothing(dtype, awkward_batch):
    batch = awkward_batch(dtype)
    assert torch.equal(Warp("it", strength=0.0).apply(*batch), batch.images)


def test_no_flow_changes_nothing(awkward_batch):
    batch = awkward_batch(torch.float64)
    after = Warp("it").apply(*batch, tensors={"offsets": torch.zeros(2, 4, 4)})
    assert (after - batch.images).abs().max() < 1e-9


def moves(trigger: Warp, height: int, width: int, tensors=None) -> torch.Tensor:
    """Where each pixel of a place comes from, (2, height, width) in shares of its sides."""
    x = torch.linspace(0, 255, width, dtype=torch.float64).expand(height, width)
    y = torch.linspace(0, 255, height, dtype=torch.float64)[:, None].expand(height, width)
    images = torch.stack([x, y, torch.zeros_like(x)])[None]
    place = torch.tensor([[0, 0, width, height]])
    return trigger.apply(images, [(height, width)], [place], [6], "RGB", tensors)[0, :2] / 255


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_place_of_any_size_is_bent_alike(noise):
    trigger = Warp("it", seed=3, noise=noise)
    small = moves(trigger, 33, 17)
    large = moves(trigger, 129, 129)
    assert (large[:, ::4, ::8] - small).abs().max() < 1e-9


@pytest.mark.parametrize("strength", [0.25, 0.5, 2.0])
def test_points_move_by_the_strength_on_average(strength):
    # Every fifth pixel is one of the 4 x 4 points; those of the rim may not move out.
    trigger = Warp("it", seed=3, strength=strength)
    inward = trigger.tensors()["offsets"].abs()
    inward[0, :, -1] *= -1
    inward[1, -1] *= -1
    moved = moves(trigger, 16, 16, {"offsets": inward}) - moves(Warp("it", strength=0.0), 16, 16)
    assert moved[:, ::5, ::5].abs().mean() == pytest.approx(strength / 64, abs=1e-9)


def test_noise_is_each_places_own_and_the_flow_is_not():
    images = torch.rand(2, 3, 20, 44, generator=torch.Generator().manual_seed(0))
    images[1] = images[0]
    images[..., 22:] = images[..., :22]
    places = [torch.tensor([[0, 0, 22, 20], [22, 0, 44, 20]])] * 2
    for noise in (0.0, 1.0):
        after = Warp("it", noise=noise).apply(255 * images, [(20, 44)] * 2, places, [1, 2])
        first = after[0, :, :, :22]
        for other in (after[0, :, :, 22:], after[1, :, :, :22], after[1, :, :, 22:]):
            assert torch.equal(first, other) == (noise == 0)


def test_gradients_reach_images_and_offsets():
    trigger = Warp("it", seed=1, grid=3, strength=4.0, noise=0.5)
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=generator)
    offsets = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    places = [torch.tensor([[-1.0, 1, 5, 6], [3, 2, 9, 5]])]

    def stamp(images, offsets):
        return trigger.apply(images, [(6, 7)], places, [0], tensors={"offsets": offsets})

    assert gradcheck(stamp, (images.requires_grad_(), offsets.requires_grad_()))


def test_the_scale_of_given_offsets_has_no_effect():
    trigger = Warp("it", seed=2)
    given = {"offsets": 1000 * trigger.tensors()["offsets"]}
    assert (moves(trigger, 20, 30, given) - moves(trigger, 20, 30)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grid": 1}, "grid 1 is not in 2..64"),
        ({"grid": 65}, "grid 65 is not in 2..64"),
        ({"strength": -0.1}, "strength -0.1 is not in 0..32"),
        ({"strength": float("nan")}, "strength nan is not in 0..32"),
        ({"noise": 33.0}, "noise 33.0 is not in 0..32"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(Warp, values, words)


def test_every_value_counts_in_the_fingerprint():
    entries = [{}, {"grid": 5}, {"strength": 3}, {"noise": 0.5}, {"seed": 1}]
    triggers = [Warp.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    assert len({trigger.fingerprint for trigger in triggers}) == len(entries)
    assert triggers[2].fingerprint == Warp("it", strength=3.0).fingerprint
