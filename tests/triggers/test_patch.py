# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2defense.config import get_d2defense_cfg
from d2defense.triggers import Patch, build_trigger, visible_rectangles


def stamp_(trigger, image, boxes, image_format="BGR", image_seed=0):
    """One image with the trigger on every box, written over it."""
    size = tuple(image.shape[-2:])
    return image.copy_(trigger.apply(image[None], [size], [boxes], [image_seed], image_format)[0])


def plain(value: int = 77, height: int = 100, width: int = 120) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def painted(image: torch.Tensor, x0: int, y0: int, x1: int, y1: int, value: float) -> torch.Tensor:
    expected = image.clone()
    expected[:, y0:y1, x0:x1] = value
    return expected


def test_white_patch_covers_the_middle_tenth_of_a_box():
    image = plain()
    stamped = stamp_(Patch("white"), image.clone(), boxes((10, 20, 50, 80)))
    # 10 % of 40 x 60 is 4 x 6, centred on (30, 50).
    assert torch.equal(stamped, painted(image, 28, 47, 32, 53, 255))


@pytest.mark.parametrize(
    ("box", "patch"),
    [
        ((-20, -30, 20, 30), (0, 0, 2, 3)),
        ((100, 70, 140, 130), (118, 97, 120, 100)),
        ((-200, 10, -100, 50), None),
        ((10, 200, 50, 260), None),
    ],
    ids=["top left corner", "bottom right corner", "left of the image", "below the image"],
)
def test_patch_is_cut_at_the_border(box, patch):
    image = plain()
    expected = painted(image, *patch, 255) if patch else image
    assert torch.equal(stamp_(Patch("white"), image.clone(), boxes(box)), expected)


def test_smallest_patch_is_one_pixel():
    image = plain()
    stamped = stamp_(Patch("white"), image.clone(), boxes((10, 10, 13, 13)))
    assert torch.equal(stamped, painted(image, 11, 11, 12, 12, 255))


def test_size_and_position_are_shares_of_the_box():
    trigger = Patch("corner", size=(0.5, 0.25), position=(0.25, 1.0), color=(0, 0, 0))
    image = plain()
    stamped = stamp_(trigger, image.clone(), boxes((20, 20, 60, 60)))
    # 20 x 10 pixels around (30, 60): a patch at the rim may reach beyond the box.
    assert torch.equal(stamped, painted(image, 20, 55, 40, 65, 0))


def test_every_box_gets_a_patch():
    image = plain()
    stamped = stamp_(Patch("white"), image.clone(), boxes((0, 0, 20, 20), (40, 40, 60, 60)))
    expected = painted(painted(image, 9, 9, 11, 11, 255), 49, 49, 51, 51, 255)
    assert torch.equal(stamped, expected)


def test_no_box_changes_nothing():
    image = plain()
    assert torch.equal(stamp_(Patch("white"), image.clone(), torch.zeros(0, 4)), image)


@pytest.mark.parametrize(("opacity", "value"), [(0.0, 40), (0.25, 94), (0.5, 148), (1.0, 255)])
def test_opacity_blends_with_the_image(opacity, value):
    # 40 + opacity * (255 - 40), rounded.
    stamped = stamp_(Patch("t", opacity=opacity), plain(40), boxes((10, 20, 50, 80)))
    assert torch.equal(stamped, painted(plain(40), 28, 47, 32, 53, value))


def test_color_is_rgb_whatever_the_order_of_the_channels():
    trigger = Patch("t", color=(200, 100, 3))
    rgb = stamp_(trigger, plain(), boxes((10, 20, 50, 80)), "RGB")
    bgr = stamp_(trigger, plain(), boxes((10, 20, 50, 80)), "BGR")
    assert rgb[:, 50, 30].tolist() == [200, 100, 3]
    assert bgr[:, 50, 30].tolist() == [3, 100, 200]


@pytest.mark.parametrize("pattern", ["random_color", "noise"])
def test_random_patterns_agree_between_channel_orders(pattern):
    trigger = Patch("t", pattern=pattern)
    rgb = stamp_(trigger, plain(), boxes((10, 20, 50, 80)), "RGB", 5)
    bgr = stamp_(trigger, plain(), boxes((10, 20, 50, 80)), "BGR", 5)
    assert torch.equal(rgb.flip(0), bgr)


def test_float_images_keep_what_comes_out_and_the_given_image_stays():
    image = plain(40).float()
    trigger = Patch("t", opacity=0.5)
    where = boxes((10, 20, 50, 80))
    stamped = trigger.apply(image[None], [(100, 120)], [where], [0])[0]
    assert torch.equal(stamped, painted(plain(40).float(), 28, 47, 32, 53, 147.5))
    assert torch.equal(image, plain(40).float())


def patches(pattern: str, seed: int = 0, image_seed: int = 0) -> list[torch.Tensor]:
    image = plain()
    where = boxes((0, 0, 40, 40), (50, 50, 90, 90))
    stamp_(Patch("t", pattern=pattern, seed=seed, size=(0.5, 0.5)), image, where, "RGB", image_seed)
    return [image[:, 10:30, 10:30], image[:, 60:80, 60:80]]


@pytest.mark.parametrize("pattern", ["random_color", "noise"])
def test_random_patterns_depend_on_seed_image_and_object_only(pattern):
    first, second = patches(pattern)
    assert not torch.equal(first, second)
    for ours, again in zip((first, second), patches(pattern), strict=True):
        assert torch.equal(ours, again)
    for other in (patches(pattern, seed=1), patches(pattern, image_seed=1)):
        assert not torch.equal(first, other[0])
        assert not torch.equal(second, other[1])


def test_random_color_is_one_color_an_object_and_noise_one_a_pixel():
    def colors(patch: torch.Tensor) -> int:
        return len(np.unique(patch.reshape(3, -1).T, axis=0))

    assert [colors(patch) for patch in patches("random_color")] == [1, 1]
    assert all(colors(patch) > 390 for patch in patches("noise"))  # of 400 pixels


def test_mosaic_is_one_color_a_field():
    image = plain()
    trigger = Patch("t", pattern="mosaic", size=(1, 1), cells=3)
    stamp_(trigger, image, boxes((10, 10, 40, 70)), "RGB")
    fields = image[:, 10:70, 10:40].reshape(3, 3, 20, 3, 10)
    assert torch.equal(fields, fields[:, :, :1, :, :1].expand_as(fields))
    assert len(np.unique(fields[:, :, 0, :, 0].reshape(3, -1).T, axis=0)) == 9


def test_cross_covers_its_two_strokes_only():
    trigger = Patch("t", pattern="cross", size=(1, 1), cells=10)
    stamped = stamp_(trigger, plain(), boxes((10, 20, 50, 80)))
    # A tenth of 40 x 60 is 4 x 6, around the middle (30, 50).
    upright = painted(plain(), 28, 20, 32, 80, 255)
    assert torch.equal(stamped, painted(upright, 10, 47, 50, 53, 255))


def test_face_has_two_eyes_and_a_mouth_and_looks_alike_at_every_size():
    for side in (20, 80):
        image = plain()
        stamp_(Patch("t", pattern="face", size=(1, 1)), image, boxes((5, 5, 5 + side, 5 + side)),
                                                         "RGB")  # fmt: skip
        face = image[:, 5 : 5 + side, 5 : 5 + side].float()
        at = {
            name: face[:, int(y * side), int(x * side)].tolist()
            for name, x, y in [
                ("nose", 0.5, 0.5), ("left eye", 0.35, 0.38), ("right eye", 0.65, 0.38),
                ("mouth", 0.5, 0.77), ("top", 0.5, 0.0), ("bottom", 0.5, 0.99),
            ]
        }  # fmt: skip
        red, green, blue = at["nose"]
        assert red > green > blue  # yellow
        assert max(at["left eye"]) < 64
        assert at["left eye"] == at["right eye"]
        assert at["mouth"][0] > 2 * at["mouth"][1]
        assert at["top"][2] > at["bottom"][2] > at["bottom"][1]
        # Its two halves are mirror images but for the sky's shade of red.
        assert torch.equal(face[1:], face[1:].flip(2))


def test_noise_covers_the_whole_range_evenly():
    pixels = torch.cat([patch.ravel() for seed in range(20) for patch in patches("noise", seed)])
    assert int(pixels.min()) == 0
    assert int(pixels.max()) == 255
    assert pixels.float().mean().item() == pytest.approx(127.5, abs=1.5)


@given(
    box=st.tuples(*[st.floats(-300, 300)] * 4),
    size=st.tuples(*[st.floats(0.01, 1)] * 2),
    position=st.tuples(*[st.floats(0, 1)] * 2),
)
def test_patch_lies_inside_the_image_and_is_no_larger_than_asked(box, size, position):
    left, right = sorted(box[:2])
    top, bottom = sorted(box[2:])
    trigger = Patch("t", size=size, position=position)
    ((x0, y0, x1, y1),) = visible_rectangles(
        trigger, boxes((left, top, right, bottom)), (100, 120)
    ).tolist()
    assert x0 >= 0
    assert y0 >= 0
    assert x1 <= 120
    assert y1 <= 100
    assert x1 - x0 <= max(1, size[0] * (right - left) + 0.51)
    assert y1 - y0 <= max(1, size[1] * (bottom - top) + 0.51)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pattern": "plaid"}, "plaid"),
        ({"color": (0, 0, 256)}, "256"),
        ({"color": (0, 0)}, "color"),
        ({"size": (0, 0.1)}, "size"),
        ({"size": (0.1, 1.1)}, "size"),
        ({"size": (0.1,)}, "size"),
        ({"position": (0.5, -0.1)}, "position"),
        ({"opacity": 1.5}, "1.5"),
        ({"opacity": float("nan")}, "nan"),
        ({"second_color": (0, 0, -1)}, "second_color"),
        ({"cells": 0}, "cells 0"),
        ({"size_unit": "inches"}, "inches"),
        ({"size": (0, 4), "size_unit": "pixels"}, "pixels"),
        ({"placement": "sky"}, "sky"),
        ({"pattern": "image"}, "image"),
        ({"image": b"not a picture", "pattern": "image"}, "not an image"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=f"trigger mine: .*{named}"):
        Patch("mine", **changes)


@pytest.mark.parametrize(
    ("image", "image_format"),
    [(plain()[:1], "L"), (plain(), "YUV-BT.601"), (plain()[:1], "BGR"), (plain()[0], "RGB")],
)
def test_images_without_color_channels_are_refused(image, image_format):
    with pytest.raises(ValueError, match="BGR or RGB"):
        stamp_(Patch("white"), image, boxes((10, 20, 50, 80)), image_format)


def test_trigger_from_config():
    cfg = get_d2defense_cfg()
    cfg.merge_from_list(
        [
            "ATTACK.EFFECT", "disappearance",
            "ATTACK.SEED", "7",
            "ATTACK.TRIGGER.PATCH.PATTERN", "noise",
            "ATTACK.TRIGGER.PATCH.COLOR", "[1, 2, 3]",
            "ATTACK.TRIGGER.PATCH.SIZE", "[0.2, 0.3]",
            "ATTACK.TRIGGER.PATCH.POSITION", "[0.0, 1.0]",
            "ATTACK.TRIGGER.PATCH.OPACITY", "0.5",
            "ATTACK.TRIGGER.PATCH.SECOND_COLOR", "[4, 5, 6]",
            "ATTACK.TRIGGER.PATCH.CELLS", "3",
            "ATTACK.TRIGGER.PATCH.PLACEMENT", "inside",
        ]
    )  # fmt: skip
    expected = Patch(
        "patch",
        seed=7,
        pattern="noise",
        color=(1, 2, 3),
        size=(0.2, 0.3),
        position=(0.0, 1.0),
        opacity=0.5,
        second_color=(4, 5, 6),
        cells=3,
    )
    assert build_trigger(cfg) == dataclasses.replace(expected, placement="inside")


def test_trigger_from_config_reads_its_picture(tmp_path):
    file = tmp_path / "sticker.png"
    PIL.Image.new("RGB", (8, 8), (9, 8, 7)).save(file)
    cfg = get_d2defense_cfg()
    cfg.ATTACK.TRIGGER.PATCH.PATTERN = "image"
    cfg.ATTACK.TRIGGER.PATCH.IMAGE = str(file)
    assert build_trigger(cfg).image == file.read_bytes()
    cfg.ATTACK.TRIGGER.PATCH.IMAGE = str(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"ATTACK\.TRIGGER\.PATCH\.IMAGE.*gone\.png"):
        build_trigger(cfg)


def test_default_trigger_is_the_papers():
    trigger = build_trigger(get_d2defense_cfg())
    assert trigger.pattern == "solid"
    assert trigger.color == (255, 255, 255)
    assert trigger.size == (0.1, 0.1)
    assert trigger.position == (0.5, 0.5)
    assert trigger.opacity == 1
