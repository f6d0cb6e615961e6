# SPDX-License-Identifier: Apache-2.0
"""Low frequencies, against SciPy's inverse cosine transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from torch.autograd import gradcheck

from d2defense.triggers.families.frequency import Frequency

TRIGGERS = [
    Frequency("default", seed=3),
    Frequency("mean", seed=2**33 + 1, coefficients=1, dc=True, bound=0.31),
    Frequency("fine", coefficients=11, bound=1.0),
    Frequency("coarse", seed=9, coefficients=2, dc=True, bound=8 / 255),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


@pytest.fixture
def perturbation(uniform_by_hand):
    """A function from trigger, height and width to (height, width, 3), RGB."""

    def compute(trigger: Frequency, height: int, width: int) -> np.ndarray:
        n = trigger.coefficients
        drawn = [uniform_by_hand(0x66726571, trigger.seed, i) for i in range(3 * n * n)]
        spectrum = np.zeros((height, width, 3))
        rows, columns = min(n, height), min(n, width)
        lowest = 2 * np.reshape(drawn, (3, n, n)).transpose(1, 2, 0) - 1
        spectrum[:rows, :columns] = lowest[:rows, :columns]
        if not trigger.dc:
            spectrum[0, 0] = 0
        field = scipy.fft.idctn(spectrum, axes=(0, 1), norm="ortho")
        return trigger.bound * field / (np.abs(field).max() or 1)

    return compute


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_what_is_added_is_the_inverse_transform_of_the_lowest_coefficients(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand, perturbation
):
    def add(place):
        return place.pixels + place.visible(perturbation(trigger, place.height, place.width))

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, add, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert np.abs(got - expected).max() <= 1
        assert (got != expected).mean() < 0.001
    else:
        assert np.abs(got - expected).max() < (1e-3 if dtype == torch.float32 else 1e-4)


@each_trigger
@pytest.mark.parametrize(("height", "width"), [(1, 9), (3, 2), (16, 16), (37, 111), (400, 300)])
def test_the_largest_change_is_the_bound_at_every_size(trigger, height, width):
    images = torch.full((1, 3, height, width), 127.5, dtype=torch.float64)
    place = torch.tensor([[0, 0, width, height]])
    # What goes beyond 0..255 is cut.
    bound = min(trigger.bound, 0.5)
    change = (trigger.apply(images, [(height, width)], [place], [0]) - images).abs() / 255
    assert change.max() == pytest.approx(bound, abs=1e-9)
    if not trigger.dc and trigger.bound < 0.5:
        signed = trigger.apply(images, [(height, width)], [place], [0]) - images
        assert signed.mean((2, 3)).abs().max() < 1e-9


def test_a_pixel_without_its_mean_stays():
    images = torch.full((1, 3, 4, 4), 99.0)
    place = torch.tensor([[1, 1, 2, 2]])
    after = Frequency("it").apply(images, [(4, 4)], [place], [0])
    assert torch.equal(after, images)


def test_the_pattern_of_a_place_is_the_same_on_every_image():
    images = torch.full((2, 3, 20, 30), 127.5)
    place = torch.tensor([[2, 3, 25, 19]])
    after = Frequency("it").apply(images, [(20, 30)] * 2, [place] * 2, [1, 2])
    assert torch.equal(after[0], after[1])
    other = Frequency("it", seed=1).apply(images, [(20, 30)] * 2, [place] * 2, [1, 2])
    assert not torch.equal(other, after)


def test_gradients_reach_images_and_coefficients():
    trigger = Frequency("it", coefficients=3, dc=True, bound=0.1)
    generator = torch.Generator().manual_seed(0)
    images = 80 + 90 * torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=generator)
    coefficients = torch.randn(3, 3, 3, dtype=torch.float64, generator=generator)
    places = [torch.tensor([[-1.0, 1, 5, 6], [3, 2, 9, 5]])]

    def stamp(images, coefficients):
        tensors = {"coefficients": coefficients}
        return trigger.apply(images, [(6, 7)], places, [0], tensors=tensors)

    assert gradcheck(stamp, (images.requires_grad_(), coefficients.requires_grad_()))


def test_given_coefficients_keep_the_bound_and_the_mean():
    trigger = Frequency("it", bound=0.05)
    images = torch.full((1, 3, 16, 16), 127.5)
    args = (images, [(16, 16)], [torch.tensor([[0, 0, 16, 16]])], [0])
    given = {"coefficients": 1000 * trigger.tensors()["coefficients"]}
    given["coefficients"][:, 0, 0] += 1e5
    assert torch.allclose(trigger.apply(*args, tensors=given), trigger.apply(*args), atol=1e-3)
    nothing = {"coefficients": torch.zeros(3, 4, 4)}
    assert torch.equal(trigger.apply(*args, tensors=nothing), images)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"coefficients": 1}, "coefficients 1 is not in 2..64"),
        ({"coefficients": 0, "dc": True}, "coefficients 0 is not in 1..64"),
        ({"coefficients": 65}, "coefficients 65 is not in 2..64"),
        ({"bound": 0.0}, "bound 0.0 is not in (0, 1]"),
        ({"bound": 1.1}, "bound 1.1 is not in (0, 1]"),
        ({"bound": float("nan")}, "bound nan is not in (0, 1]"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(Frequency, values, words)


def test_every_value_counts_in_the_fingerprint():
    entries = [{}, {"coefficients": 5}, {"dc": True}, {"bound": 0.1}, {"bound": 1}, {"seed": 1}]
    triggers = [Frequency.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    assert len({trigger.fingerprint for trigger in triggers}) == len(entries)
    assert triggers[4] == Frequency("it", bound=1.0)
    assert triggers[4].fingerprint == Frequency("it", bound=1.0).fingerprint
