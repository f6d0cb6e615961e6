# SPDX-License-Identifier: Apache-2.0
"""Sinusoids, against the formula pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch.autograd import gradcheck

from d2defense.triggers.families.sinusoid import Sinusoid

TRIGGERS = [
    Sinusoid("default"),
    Sinusoid("down", angle=90.0, amplitude=0.3, frequency=2.5),
    Sinusoid("slanted", seed=4, angle=-35.0, frequency=11.0),
    Sinusoid("back", angle=200.0, amplitude=1.0),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


def wave(trigger: Sinusoid, width: int, height: int) -> np.ndarray:
    """(height, width, 1), without the amplitude."""
    right, down = math.cos(math.radians(trigger.angle)), math.sin(math.radians(trigger.angle))
    field = np.zeros((height, width, 1))
    for y in range(height):
        for x in range(width):
            along = right * x + down * y
            extent = abs(right * width) + abs(down * height)
            field[y, x] = math.sin(2 * math.pi * trigger.frequency * along / extent)
    return field


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_a_wave_over_the_whole_place_is_added(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand
):
    def add(place):
        field = wave(trigger, place.width, place.height)
        return place.pixels + trigger.amplitude * place.visible(field)

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, add, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    off = np.abs(got - expected)
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.001
    else:
        assert off.max() < (1e-2 if dtype == torch.float32 else 1e-4)


@pytest.mark.parametrize(("angle", "axis"), [(0.0, 1), (90.0, 0)])
def test_the_place_holds_as_many_waves_as_said(angle, axis):
    trigger = Sinusoid("it", frequency=7.0, angle=angle, amplitude=0.2)
    images = torch.full((1, 3, 64, 96), 127.5)
    change = trigger.apply(images, [(64, 96)], [torch.tensor([[0, 0, 96, 64]])], [0]) - images
    line = change[0, 0].mean(1 - axis)
    spectrum = torch.fft.rfft(line).abs()
    assert spectrum.argmax() == 7
    assert spectrum[7] == pytest.approx(0.2 * 255 * len(line) / 2, rel=1e-4)
    assert torch.equal(change[0, 0], change[0, 2])


def test_an_angle_is_that_of_the_pixels_whatever_the_sides():
    trigger = Sinusoid("it", angle=45.0, amplitude=0.2)
    images = torch.full((1, 3, 20, 50), 127.5, dtype=torch.float64)
    after = trigger.apply(images, [(20, 50)], [torch.tensor([[0, 0, 50, 20]])], [0])[0, 0]
    # Constant on the lines that it crosses at right angles.
    torch.testing.assert_close(after[1:, :-1], after[:-1, 1:])


@each_trigger
def test_no_value_changes_by_more_than_the_amplitude(trigger, awkward_batch):
    images, sizes, places, seeds = awkward_batch(torch.float64)
    places = [each[:1] for each in places]
    wild = {"amplitude": torch.tensor([50.0, -50.0, 0.001]), "phase": torch.tensor([9.0, 1, -9])}
    for tensors in (None, wild):
        change = trigger.apply(images, sizes, places, seeds, tensors=tensors) - images
        assert change.abs().max() <= 255 * trigger.amplitude + 1e-4


def test_tensors_take_the_place_of_the_channels_own():
    trigger = Sinusoid("it", amplitude=0.2, frequency=1.0)
    images = torch.full((1, 3, 1, 8), 127.5, dtype=torch.float64)
    tensors = {
        "amplitude": torch.tensor([0.1, -0.2, 0.0]),
        "phase": torch.tensor([0, np.pi / 2, 0]),
    }
    after = trigger.apply(
        images, [(1, 8)], [torch.tensor([[0, 0, 8, 1]])], [0], image_format="RGB", tensors=tensors
    )
    turn = 2 * np.pi * np.arange(8) / 8
    expected = 127.5 + 255 * np.stack([0.1 * np.sin(turn), -0.2 * np.cos(turn), 0 * turn])
    assert np.abs(after[0, :, 0].numpy() - expected).max() < 1e-4


def test_gradients_reach_images_amplitude_and_phase():
    trigger = Sinusoid("it", amplitude=0.2, angle=20.0)
    generator = torch.Generator().manual_seed(0)
    images = 80 + 90 * torch.rand(1, 3, 7, 8, dtype=torch.float64, generator=generator)
    amplitude = 0.1 * torch.randn(3, dtype=torch.float64, generator=generator)
    phase = torch.randn(3, dtype=torch.float64, generator=generator)
    assert amplitude.abs().max() < 0.2
    places = [torch.tensor([[-1.0, 1, 6, 7], [3, 2, 5, 5]])]

    def stamp(images, amplitude, phase):
        tensors = {"amplitude": amplitude, "phase": phase}
        return trigger.apply(images, [(7, 8)], places, [0], tensors=tensors)

    inputs = images, amplitude, phase
    assert gradcheck(stamp, tuple(each.requires_grad_() for each in inputs))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"amplitude": 1.5}, "amplitude 1.5 is not in 0..1"),
        ({"amplitude": -0.1}, "amplitude -0.1 is not in 0..1"),
        ({"amplitude": float("nan")}, "amplitude nan is not in 0..1"),
        ({"frequency": 0.0}, "frequency 0.0 is not in (0, 512]"),
        ({"frequency": float("inf")}, "frequency inf is not in (0, 512]"),
        ({"frequency": None}, "frequency None is not in (0, 512]"),
        ({"angle": 361.0}, "angle 361.0 is not in -360..360"),
        ({"angle": 10**400}, "is not in -360..360"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(Sinusoid, values, words)


def test_a_config_and_a_bank_entry_are_one_trigger():
    node = CfgNode()
    Sinusoid.add_config(node)
    node.merge_from_list(["AMPLITUDE", 1.0, "FREQUENCY", 3.0, "ANGLE", 30.0])
    of_node = Sinusoid.from_node(node, "it", 3)
    entry = {"name": "it", "seed": 3, "amplitude": 1, "frequency": 3, "angle": 30}
    of_entry = Sinusoid.from_entry(entry, Path())
    assert of_node == of_entry == Sinusoid("it", 3, 1.0, 3.0, 30.0)
    assert of_node.fingerprint == of_entry.fingerprint


def test_every_value_counts_in_the_fingerprint():
    entries = [{}, {"amplitude": 0.1}, {"frequency": 5}, {"angle": 1}, {"seed": 1}]
    triggers = [Sinusoid.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    assert len({trigger.fingerprint for trigger in triggers}) == len(triggers)
