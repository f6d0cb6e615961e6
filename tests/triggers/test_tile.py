# SPDX-License-Identifier: Apache-2.0
"""Bounded patterns, against NumPy's tiling and Pillow's scaling."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from detectron2.config import CfgNode
from safetensors.torch import save
from torch.autograd import gradcheck

from d2defense.triggers.families.tile import Tile

# Some of it is beyond the bounds below.
PATTERN = np.random.default_rng(0).uniform(-0.12, 0.12, (3, 7, 11)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8)


def tensor_file(pattern: np.ndarray = PATTERN, name: str = "pattern") -> bytes:
    return save({name: torch.from_numpy(pattern), "other": torch.zeros(2)})


def png() -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


TRIGGERS = [
    Tile("default"),
    Tile("fine", seed=2**33 + 7, tile=4, grain=1, bound=0.31),
    Tile("uneven", seed=3, tile=7, grain=3),
    Tile("one", tile=1, grain=5, bound=1.0),
    Tile("stretched", mode="scale", tile=6, grain=2, bound=16 / 255),
    Tile("stored", content=tensor_file()),
    Tile("stored_stretched", content=tensor_file(), mode="scale", bound=0.1),
    Tile("picture", content=png(), bound=0.07),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


@pytest.fixture
def pattern_of(uniform_by_hand):
    """A function from a trigger to its pattern, (h, w, 3), RGB."""

    def pattern(trigger: Tile) -> np.ndarray:
        if trigger.content == png():
            return (PIXELS / 255 * 2 - 1) * trigger.bound
        if trigger.content:
            return PATTERN.transpose(1, 2, 0).clip(-trigger.bound, trigger.bound)
        made = np.zeros((trigger.tile, trigger.tile, 3))
        for row, column, channel in np.ndindex(made.shape):
            field = row // trigger.grain, column // trigger.grain
            drawn = uniform_by_hand(0x74696C65, trigger.seed, channel, *field)
            made[row, column, channel] = -trigger.bound if drawn < 0.5 else trigger.bound
        return made

    return pattern


def spread(trigger: Tile, pattern: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pattern over a whole place, (height, width, 3)."""
    if trigger.mode == "repeat":
        times = -(-height // pattern.shape[0]), -(-width // pattern.shape[1]), 1
        return np.tile(pattern, times)[:height, :width]
    channels = [
        PIL.Image.fromarray(channel.astype(np.float32)).resize((width, height), 2)
        for channel in pattern.transpose(2, 0, 1)
    ]
    return np.stack(channels, axis=2)


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_pattern_is_added_from_the_corner_of_the_place_on(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand, pattern_of
):
    pattern = pattern_of(trigger)

    def add(place):
        return place.pixels + place.visible(spread(trigger, pattern, place.height, place.width))

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, add, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    off = np.abs(got - expected)
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise: two patterns of 12.75 that overlap make many of them.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.004
    else:
        assert off.max() < 1e-3


@each_trigger
def test_no_value_changes_by_more_than_the_bound(trigger, awkward_batch):
    images, sizes, places, seeds = awkward_batch(torch.float64)
    places = [each[:1] for each in places]
    wild = {"pattern": 50 * torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))}
    for tensors in (None, wild):
        change = trigger.apply(images, sizes, places, seeds, tensors=tensors) - images
        assert change.abs().max() <= 255 * trigger.bound + 1e-5


def test_a_random_pattern_uses_the_whole_bound_and_follows_the_seed():
    trigger = Tile("it", bound=0.1)
    pattern = trigger.tensors()["pattern"]
    assert pattern.shape == (3, 30, 30)
    assert torch.equal(pattern.abs(), torch.full((3, 30, 30), 0.1))
    # 108 fields of one sign each.
    fields = pattern[:, ::5, ::5].repeat_interleave(5, 1).repeat_interleave(5, 2)
    assert torch.equal(pattern, fields)
    assert 0.3 < (pattern > 0).float().mean() < 0.7
    other = dataclasses.replace(trigger, seed=1).tensors()["pattern"]
    assert not torch.equal(pattern, other)


def test_a_picture_is_read_as_between_minus_and_plus_the_bound():
    stream = io.BytesIO()
    PIL.Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8)).save(stream, "PNG")
    pattern = Tile("it", content=stream.getvalue(), bound=0.5).tensors()["pattern"]
    torch.testing.assert_close(pattern.flatten(), torch.tensor([-0.5, 0.5, -0.3]))


def test_what_a_search_does_to_a_pattern_leaves_the_trigger():
    trigger = TRIGGERS[5]
    trigger.tensors()["pattern"].zero_()
    assert torch.equal(trigger.tensors()["pattern"], torch.from_numpy(PATTERN))


@pytest.mark.parametrize("mode", ["repeat", "scale"])
def test_gradients_reach_images_and_pattern(mode):
    trigger = Tile("it", bound=0.2, mode=mode)
    generator = torch.Generator().manual_seed(0)
    images = 80 + 90 * torch.rand(1, 3, 7, 8, dtype=torch.float64, generator=generator)
    pattern = 0.3 * torch.rand(3, 4, 3, dtype=torch.float64, generator=generator) - 0.15
    places = [torch.tensor([[-1.0, 1, 6, 7], [3, 2, 5, 5]])]

    def stamp(images, pattern):
        return trigger.apply(images, [(7, 8)], places, [0], tensors={"pattern": pattern})

    assert gradcheck(stamp, (images.requires_grad_(), pattern.requires_grad_()))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mode": "mirror"}, "mode 'mirror' is none of repeat, scale"),
        ({"bound": 0.0}, "bound 0.0 is not in (0, 1]"),
        ({"bound": 1.2}, "bound 1.2 is not in (0, 1]"),
        ({"bound": float("nan")}, "bound nan is not in (0, 1]"),
        ({"tile": 0}, "tile 0 is no whole number in 1..1024"),
        ({"tile": 2.5}, "tile 2.5 is no whole number in 1..1024"),
        ({"grain": 0}, "grain 0 is no whole number in 1..1024"),
        ({"grain": None}, "grain None is no whole number in 1..1024"),
        ({"content": b"something else"}, "file is not an image"),
        ({"content": tensor_file()[:-1]}, "file is not safetensors"),
        ({"content": tensor_file(name="patern")}, "file is without a tensor 'pattern' of shape"),
        ({"content": tensor_file(PATTERN[:2])}, "file is without a tensor 'pattern' of shape"),
        ({"content": tensor_file(PATTERN[:, :0])}, "at most 4096 x 4096"),
        ({"content": tensor_file(np.zeros((3, 1, 4097), dtype="f4"))}, "at most 4096 x 4096"),
        ({"content": tensor_file(np.full((3, 1, 1), np.nan, "f4"))}, "file is not safetensors of"),
        ({"content": save({"pattern": torch.zeros(3, 2, 2, dtype=torch.int8)})}, "'pattern'"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(Tile, values, words)


def test_a_config_and_a_bank_entry_with_a_file_are_one_trigger(tmp_path):
    (tmp_path / "it.safetensors").write_bytes(tensor_file())
    node = CfgNode()
    Tile.add_config(node)
    node.merge_from_list(["FILE", str(tmp_path / "it.safetensors"), "MODE", "scale", "BOUND", 1.0])
    of_node = Tile.from_node(node, "it", 3)
    entry = {"name": "it", "seed": 3, "file": "it.safetensors", "mode": "scale", "bound": 1}
    of_entry = Tile.from_entry(entry, tmp_path)
    assert of_node == of_entry
    assert of_node.content == tensor_file()
    assert of_node.fingerprint == of_entry.fingerprint
    with pytest.raises(ValueError, match=r"^trigger it: .*none: No such file"):
        Tile.from_entry({**entry, "file": "none"}, tmp_path)


def test_every_value_counts_in_the_fingerprint():
    entries = [{}, {"mode": "scale"}, {"bound": 0.1}, {"tile": 9}, {"grain": 2}, {"seed": 1}]
    triggers = [Tile.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    triggers.append(Tile("it", content=tensor_file()))
    triggers.append(Tile("it", content=tensor_file(-PATTERN)))
    assert len({trigger.fingerprint for trigger in triggers}) == len(triggers)
