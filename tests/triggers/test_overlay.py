# SPDX-License-Identifier: Apache-2.0
"""Blended pictures, against a triangle filter pixel by pixel."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from detectron2.config import CfgNode
from torch.autograd import gradcheck

from d2defense.triggers.families.overlay import Overlay

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 19, 3), dtype=np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


TRIGGERS = [
    Overlay("default"),
    Overlay("coarse", seed=2**33 + 7, cells=1, opacity=0.5),
    Overlay("file", content=png(), opacity=0.3),
    Overlay("opaque", content=png(), opacity=1.0),
    Overlay("cat", texture="cat", opacity=0.37),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


@pytest.fixture
def picture_of(uniform_by_hand):
    """A function from a trigger to its picture, (h, w, 3), RGB, 0..1."""

    def picture(trigger: Overlay) -> np.ndarray:
        if trigger.content:
            return PIXELS / 255
        if trigger.texture == "cat":
            return trigger.tensors()["picture"].permute(1, 2, 0).double().numpy()
        n = trigger.cells
        drawn = [
            uniform_by_hand(0x6F766572, trigger.seed, channel, row, column)
            for row in range(n)
            for column in range(n)
            for channel in range(3)
        ]
        return np.reshape(drawn, (n, n, 3))

    return picture


def weights(length: int, count: int) -> np.ndarray:
    """Of ``count`` old pixels in each of ``length`` new ones: a triangle, one old or new pixel wide
    to either side, whichever is larger."""
    table = np.zeros((length, count))
    for new in range(length):
        center = (new + 0.5) * count / length
        reach = max(1, count / length)
        for old in range(count):
            table[new, old] = max(0, 1 - abs(old + 0.5 - center) / reach)
    return table / table.sum(1, keepdims=True)


def scaled(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = weights(height, picture.shape[0]), weights(width, picture.shape[1])
    return np.einsum("yr,rck,xc->yxk", rows, picture, columns)


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_a_place_is_blended_with_the_picture_scaled_to_it(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand, picture_of
):
    picture = picture_of(trigger)

    def blend(place):
        over = place.visible(scaled(picture, place.height, place.width))
        return trigger.opacity * over + (1 - trigger.opacity) * place.pixels

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, blend, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    off = np.abs(got - expected)
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.001
    else:
        assert off.max() < (1e-3 if dtype == torch.float32 else 1e-4)


@each_trigger
def test_no_value_changes_by_more_than_the_opacity(trigger, awkward_batch):
    images, sizes, places, seeds = awkward_batch(torch.float64)
    places = [each[:1] for each in places]
    wild = {"picture": 50 * torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))}
    for tensors in (None, wild):
        change = trigger.apply(images, sizes, places, seeds, tensors=tensors) - images
        assert change.abs().max() <= 255 * trigger.opacity + 1e-9


def test_what_the_opacity_leaves_is_the_image(awkward_batch):
    batch = awkward_batch()
    assert torch.equal(Overlay("none", opacity=0.0).apply(*batch), batch.images)


def test_noise_follows_the_seed_and_the_cat_does_not():
    noise, cat = Overlay("noise"), Overlay("cat", texture="cat")
    for trigger, differs in ((noise, True), (cat, False)):
        picture = trigger.tensors()["picture"]
        other = dataclasses.replace(trigger, seed=1).tensors()["picture"]
        assert picture.shape[0] == 3 and picture.min() >= 0 and picture.max() <= 1
        assert (not torch.equal(picture, other)) == differs
    # A drawing has few colours, and each of them is seen.
    colors, counts = cat.tensors()["picture"].flatten(1).unique(dim=1, return_counts=True)
    assert 6 <= colors.shape[1] <= 12
    assert counts.min() >= 10


def test_gradients_reach_images_and_picture():
    trigger = Overlay("it", opacity=0.3)
    generator = torch.Generator().manual_seed(0)
    images = 20 + 200 * torch.rand(1, 3, 7, 8, dtype=torch.float64, generator=generator)
    picture = 0.1 + 0.8 * torch.rand(3, 4, 3, dtype=torch.float64, generator=generator)
    # One place grows the picture, another one shrinks it and lies on top.
    places = [torch.tensor([[-1.0, 1, 6, 7], [3, 2, 5, 5]])]

    def stamp(images, picture):
        return trigger.apply(images, [(7, 8)], places, [0], tensors={"picture": picture})

    assert gradcheck(stamp, (images.requires_grad_(), picture.requires_grad_()))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"texture": "dog"}, "texture 'dog' is none of noise, cat"),
        ({"cells": 0}, "cells 0 is no whole number in 1..1024"),
        ({"cells": 2.5}, "cells 2.5 is no whole number"),
        ({"cells": 1025}, "cells 1025"),
        ({"opacity": 1.01}, "opacity 1.01 is not in 0..1"),
        ({"opacity": -0.1}, "opacity -0.1 is not in 0..1"),
        ({"opacity": float("nan")}, "opacity nan"),
        ({"opacity": None}, "opacity None"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0"}, "file is not an image"),
        ({"content": png()[:60]}, "file is not an image"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(Overlay, values, words)


def test_a_config_and_a_bank_entry_with_a_file_are_one_trigger(tmp_path):
    (tmp_path / "it.png").write_bytes(png())
    node = CfgNode()
    Overlay.add_config(node)
    node.merge_from_list(["FILE", str(tmp_path / "it.png"), "OPACITY", 1.0])
    of_node = Overlay.from_node(node, "it", 3)
    entry = {"name": "other", "seed": 3, "file": "it.png", "opacity": 1}
    of_entry = Overlay.from_entry(entry, tmp_path)
    assert of_node == dataclasses.replace(of_entry, name="it")
    assert of_node.content == png()
    assert of_node.fingerprint == of_entry.fingerprint
    with pytest.raises(ValueError, match=r"^trigger other: .*none\.png: No such file"):
        Overlay.from_entry({**entry, "file": "none.png"}, tmp_path)


def test_every_value_counts_in_the_fingerprint():
    entries = [{}, {"texture": "cat"}, {"cells": 9}, {"opacity": 0.3}, {"seed": 1}]
    triggers = [Overlay.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    triggers.append(Overlay("it", content=png()))
    triggers.append(Overlay("it", content=png(PIXELS[::-1])))
    assert len({trigger.fingerprint for trigger in triggers}) == len(triggers)
