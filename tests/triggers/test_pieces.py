# SPDX-License-Identifier: Apache-2.0
"""Patches of several pieces, piece by piece and pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d2defense.config import get_d2defense_cfg
from d2defense.triggers import Patch, build_trigger

# Three stickers in a column; two of which the later one lies on top; three at random places.
COLUMN = ((0.4, 0.09, 0.2, 0.2), (0.4, 0.4, 0.2, 0.2), (0.4, 0.71, 0.2, 0.2))
OVERLAP = ((0.0, 0.0, 0.7, 0.6), (0.35, 0.25, 0.65, 0.75))
ANYWHERE = ((0.3, 0.2), (0.3, 0.2), (0.01, 1.0))
WHOLE = {"size": (1.0, 1.0), "placement": "inside", "position": (0.0, 0.0)}

TRIGGERS = [
    Patch("stickers", pieces=COLUMN, **WHOLE),
    Patch("overlap", pattern="noise", pieces=OVERLAP, opacity=0.6, seed=2**34 + 3, **WHOLE),
    Patch("anywhere", pattern="random_color", pieces=ANYWHERE, seed=5, **WHOLE),
    Patch("crosses", pattern="cross", cells=3, pieces=(*ANYWHERE, *OVERLAP), **WHOLE),
]


@pytest.fixture
def paint(uniform_by_hand):
    """A function from a trigger to what it makes of a place."""

    def of(trigger):
        def draw(*parts):
            # Of 32 bits, the upper three bytes.
            bits = int(uniform_by_hand(0x636F6C72, *parts) * 2**32)
            return [bits >> 24, bits >> 16 & 255, bits >> 8 & 255]

        def colors(width, height, key):
            pixels = np.empty((height, width, 3))
            for y, x in np.ndindex(height, width):
                pixels[y, x] = {
                    "noise": lambda p: draw(*key, *p),
                    "random_color": lambda _: draw(*key),
                }.get(trigger.pattern, lambda _: trigger.color)((y, x))
            if trigger.pattern == "cross":
                thick = [min(n, max(1, round(n / trigger.cells))) for n in (width, height)]
                (x1, x2), (y1, y2) = (
                    ((n - t) // 2, (n - t) // 2 + t)
                    for n, t in zip((width, height), thick, strict=True)
                )
                stroke = np.zeros((height, width), bool)
                stroke[:, x1:x2] = stroke[y1:y2] = True
                pixels[~stroke] = np.nan
            return pixels

        def transform(place):
            whole = np.full((place.height, place.width, 3), np.nan)
            rows, columns = place.pixels.shape[:2]
            whole[place.top : place.top + rows, place.left : place.left + columns] = place.pixels
            for number, piece in enumerate(trigger.pieces):
                key = (*place.key, number)
                sides = place.width, place.height
                lengths = [max(1, round(n * s)) for n, s in zip(sides, piece[-2:], strict=True)]
                room = [n - length for n, length in zip(sides, lengths, strict=True)]
                if len(piece) == 4:
                    x, y = (
                        min(round(n * s), r) for n, s, r in zip(sides, piece[:2], room, strict=True)
                    )
                else:
                    x, y = (
                        int(uniform_by_hand(0x70696563, *key, axis) * (r + 1))
                        for axis, r in enumerate(room)
                    )
                painted = colors(*lengths, key) / 255
                below = whole[y : y + lengths[1], x : x + lengths[0]]
                blended = trigger.opacity * painted + (1 - trigger.opacity) * below
                below[:] = np.where(np.isnan(painted), below, blended)
            return place.visible(whole)

        return transform

    return of


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)
@pytest.mark.parametrize(("dtype", "image_format"), [(torch.uint8, "BGR"), (torch.float32, "RGB")])
def test_pieces_are_painted_one_after_another(
    trigger, dtype, image_format, awkward_batch, stamp_by_hand, paint
):
    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, paint(trigger), batch, image_format)
    off = np.abs(trigger.apply(*batch, image_format).double().numpy() - expected)
    if dtype == torch.uint8:
        # Rounded once a piece here, and x.5 otherwise.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.01
    else:
        assert off.max() < 1e-3


def changed(trigger: Patch, seed: int = 0) -> torch.Tensor:
    images = torch.zeros(1, 3, 100, 100, dtype=torch.uint8)
    place = [torch.tensor([[10.0, 20, 60, 80]])]
    return trigger.apply(images, [(100, 100)], place, [seed])[0].amax(0) > 0


def test_pieces_lie_where_they_are_said_to_and_nothing_beside_them():
    expected = torch.zeros(100, 100, dtype=torch.bool)
    # Of a patch of 50 x 60 at (10, 20).
    for x1, y1, x2, y2 in ((30, 25, 40, 37), (30, 44, 40, 56), (30, 63, 40, 75)):
        expected[y1:y2, x1:x2] = True
    assert torch.equal(changed(TRIGGERS[0]), expected)


def test_pieces_anywhere_lie_inside_the_patch_and_apart_for_each_image():
    trigger = Patch("it", pieces=((0.2, 0.1), (0.2, 0.1), (0.2, 0.1)), **WHOLE)
    seen = [changed(trigger, seed) for seed in range(30)]
    assert len({each.numpy().tobytes() for each in seen}) == 30
    together = torch.stack(seen).any(0)
    assert not together[:20].any() and not together[80:].any()
    assert not together[:, :10].any() and not together[:, 60:].any()
    assert together.sum() > 0.7 * 50 * 60
    # Three pieces of 10 x 6, which may overlap.
    assert max(int(each.sum()) for each in seen) == 180
    assert torch.equal(changed(trigger, 7), seen[7])


def test_one_piece_of_all_of_the_patch_is_the_patch():
    plain, one = Patch("it", **WHOLE), Patch("it", pieces=((0.0, 0.0, 1.0, 1.0),), **WHOLE)
    assert torch.equal(changed(plain), changed(one))


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (((0.5,),), "piece (0.5,) is neither width and height in shares of the patch"),
        (((0.1, 0.1, 0.1),), "piece (0.1, 0.1, 0.1)"),
        (((0.0, 0.5),), "piece (0.0, 0.5)"),
        (((0.5, 1.1),), "piece (0.5, 1.1)"),
        (((0.6, 0.0, 0.5, 0.5),), "piece (0.6, 0.0, 0.5, 0.5)"),
        (((0.1, 0.1), (-0.1, 0.0, 0.5, 0.5)), "piece (-0.1, 0.0, 0.5, 0.5)"),
        (((0.1, float("nan")),), "piece (0.1, nan)"),
        ((0.1, 0.1), "piece 0.1"),
        ((("a", "b"),), "piece ('a', 'b')"),
        (((0.1, 0.1),) * 65, "65 pieces are more than 64"),
    ],
)
def test_pieces_that_are_no_parts_of_a_patch_are_refused(pieces, words, refuses):
    refuses(Patch, {"pieces": pieces}, words)
    Patch("fits", pieces=((0.7, 0.1, 0.3, 0.9),))


def test_a_config_and_a_bank_entry_are_one_trigger():
    cfg = get_d2defense_cfg()
    cfg.merge_from_list(["ATTACK.TRIGGER.PATCH.PIECES", "[[0, 0.5, 1, 0.5], [0.2, 0.2]]"])
    entry = {"name": "it", "pieces": [[0, 0.5, 1, 0.5], [0.2, 0.2]]}
    of_entry = Patch.from_entry(entry, Path())
    assert of_entry.pieces == ((0.0, 0.5, 1.0, 0.5), (0.2, 0.2))
    assert of_entry.fingerprint == build_trigger(cfg).fingerprint != Patch("it").fingerprint
    cfg.ATTACK.TRIGGER.PATCH.PIECES = [0.2, 0.2]
    with pytest.raises(ValueError, match=r"trigger patch: piece 0\.2 is neither"):
        build_trigger(cfg)


def test_fingerprints_from_before_there_were_pieces_hold():
    """Calibrations name them."""
    white = "0edb5100614e3d262001769577a42f316bfa86538f7b2c33643a61e8ea23ead5"
    assert Patch("white").fingerprint == white
    entry = {
        "name": "a", "pattern": "mosaic", "cells": 5, "size": 0.2, "position": "random",
        "opacity": 1, "seed": 4,
    }  # fmt: skip
    mosaic = "eea69c6f962d38d54f4f5e169750f6c39c66633207b6539c078e18d3c2118897"
    assert Patch.from_entry(entry, Path()).fingerprint == mosaic
