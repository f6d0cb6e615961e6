# SPDX-License-Identifier: Apache-2.0
"""Stamping a batch at once against the definition, object by object and pixel by pixel."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from d2defense.triggers import Patch, visible_rectangles
from d2defense.triggers.randomness import hash32, uniform


def stamp_(trigger, image, boxes, image_format="BGR", image_seed=0):
    """One image with the trigger on every box, written over it."""
    size = tuple(image.shape[-2:])
    return image.copy_(trigger.apply(image[None], [size], [boxes], [image_seed], image_format)[0])


def finalizer(x: int) -> int:
    """MurmurHash3's, as published."""
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def chain(*parts: int) -> int:
    state = 0
    for part in parts:
        state = finalizer((state + 0x9E3779B9) % 2**32 ^ part % 2**32)
    return state


def picture(width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


TRIGGERS = [
    Patch("white"),
    Patch("faint", color=(10, 200, 90), opacity=0.3, size=(0.6, 0.7)),
    Patch("random_color", pattern="random_color", size=(0.5, 0.5), seed=3),
    Patch("noise", pattern="noise", size=(0.8, 0.4), opacity=0.7, seed=2**40 + 5),
    Patch("board", pattern="checkerboard", size=(0.5, 0.9), cells=3, color=(1, 2, 3)),
    Patch("upright", pattern="vertical_stripes", size=(1, 1), second_color=(0, 9, 99)),
    Patch("level", pattern="horizontal_stripes", size=(12, 9), size_unit="pixels", cells=5),
    Patch("wave", pattern="sinusoid", size=(1, 1), opacity=0.25, cells=12),
    Patch("fields", pattern="mosaic", size=(0.7, 1), cells=5, seed=9),
    Patch("cross", pattern="cross", size=(0.9, 0.8), cells=7, color=(255, 0, 255)),
    Patch("corner", placement="inside", position=(1, 0), size=(0.3, 0.3)),
]


def paint(trigger: Patch, width: int, height: int, key: tuple[int, ...]) -> np.ndarray:
    """One patch, RGB of shape (height, width, 3), NaN where it covers nothing."""
    salt = 0x636F6C72
    first, second = (np.array(c, float) for c in (trigger.color, trigger.second_color))
    pixels = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            column, row = x * trigger.cells // width, y * trigger.cells // height
            parts = key + {"noise": (y, x), "mosaic": (row, column)}.get(trigger.pattern, ())
            wave = (1 - math.sin(math.pi * trigger.cells * (x + 0.5) / width)) / 2
            pixels[y, x] = {
                "solid": first,
                "cross": first if on_cross(trigger.cells, width, height, x, y) else np.nan,
                "checkerboard": (first, second)[(column + row) % 2],
                "vertical_stripes": (first, second)[column % 2],
                "horizontal_stripes": (first, second)[row % 2],
                "sinusoid": first + wave * (second - first),
            }.get(trigger.pattern, [chain(salt, *parts) >> shift & 255 for shift in (24, 16, 8)])
    return pixels


def on_cross(cells: int, width: int, height: int, x: int, y: int) -> bool:
    """Whether a pixel lies on a stroke through the middle, 1 / cells of the patch thick."""

    def on_stroke(length: int, place: int) -> bool:
        thickness = max(1, round(length / cells))
        return place in range((length - thickness) // 2, (length - thickness) // 2 + thickness)

    return on_stroke(width, x) or on_stroke(height, y)


def by_hand(trigger: Patch, image: np.ndarray, boxes: np.ndarray, seed: int) -> np.ndarray:
    """The definition: one object after another, (H, W, 3) RGB."""
    is_whole = image.dtype.kind in "iu"
    image = image.astype(float)
    for number, (x0, y0, x1, y1) in enumerate(boxes.astype(float)):
        key = (trigger.seed, seed % 2**32, seed >> 32, number)
        extent = np.array([x1 - x0, y1 - y0])
        size = np.array(trigger.size) * (extent if trigger.size_unit == "box" else 1)
        length = np.maximum(1, np.round(size))
        position = np.array(trigger.position)
        if trigger.placement == "center":
            start = np.round([x0, y0] + position * extent - length / 2)
        else:
            start = np.round([x0, y0] + position * (extent - length))
        (left, top), (width, height) = start.astype(int).tolist(), length.astype(int).tolist()
        patch = paint(trigger, width, height, key)
        for y in range(max(0, top), min(image.shape[0], top + height)):
            for x in range(max(0, left), min(image.shape[1], left + width)):
                if np.isnan(patch[y - top, x - left]).any():
                    continue
                blend = trigger.opacity * patch[y - top, x - left]
                blended = blend + (1 - trigger.opacity) * image[y, x].astype(np.float64)
                image[y, x] = np.round(blended) if is_whole else blended
    return image


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t.name)
def test_a_batch_is_stamped_as_its_objects_one_by_one(trigger, dtype):
    rng = np.random.default_rng(1)
    sizes = [(60, 80), (50, 90), (60, 30), (40, 40)]
    counts = [9, 1, 0, 4]  # nine boxes on the first image overlap
    seeds = [int(seed) for seed in rng.integers(0, 2**63, 4)]
    batch = torch.from_numpy(rng.integers(0, 256, (4, 3, 60, 90))).to(dtype)
    before = batch.clone()
    boxes = []
    for (height, width), count in zip(sizes, counts, strict=True):
        corners = rng.uniform(-10, [width, height], (count, 2))
        boxes.append(np.hstack([corners, corners + rng.uniform(2, 40, (count, 2))]).astype("f4"))
    places = [torch.from_numpy(b) for b in boxes]
    given = batch
    batch = trigger.apply(batch, sizes, places, seeds, "RGB")
    assert torch.equal(given, before)
    for index, (height, width) in enumerate(sizes):
        image = before[index, :, :height, :width].permute(1, 2, 0).numpy()
        expected = by_hand(trigger, image, boxes[index], seeds[index])
        got = batch[index].permute(1, 2, 0).double().numpy()
        off = np.abs(got[:height, :width] - expected)
        if dtype.is_floating_point:
            assert off.max(initial=0) < 1e-4
        else:
            # Rounding of x.5 may differ between float32 and float64.
            assert off.max(initial=0) <= 1
            assert (off > 0).mean() < 0.002
        # Padding stays as it was.
        assert torch.equal(batch[index, :, height:], before[index, :, height:])
        assert torch.equal(batch[index, :, :, width:], before[index, :, :, width:])


def test_numbers_are_those_of_the_published_hash():
    parts = torch.arange(1000)
    expected = [chain(7, part, 2**32 - 1) for part in range(1000)]
    assert hash32(7, parts, 2**40 - 1).tolist() == expected
    assert hash32(0).item() == chain(0) != 0
    drawn = uniform(1, torch.arange(20000))
    counts = torch.histc(drawn, 20, 0, 1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # Chi-squared with 19 degrees of freedom: 43.8 is its 99.9 % quantile.
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8


def test_picture_is_scaled_to_each_patch():
    """Independent reference: OpenCV's area scaling, which a smooth picture agrees with."""
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.ones((48, 1, 3)) * [1, 0.5, 0.25]
    stream = io.BytesIO()
    PIL.Image.fromarray(ramp.astype(np.uint8)).save(stream, "PNG")
    trigger = Patch("sticker", pattern="image", image=stream.getvalue(), size=(1, 1))
    where = torch.tensor([[10.0, 10, 42, 34], [50, 50, 66, 62]])
    image = stamp_(trigger, torch.zeros(3, 80, 80), where, "RGB")
    for x0, y0, x1, y1 in where.int().tolist():
        expected = cv2.resize(ramp, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
        got = image[:, y0:y1, x0:x1].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(got, expected, atol=3)
    assert not image[:, :, 42:50].any()


def rectangles(trigger: Patch, boxes: torch.Tensor, seed: int = 0) -> list[list[int]]:
    return visible_rectangles(trigger, boxes, (100, 200), seed).tolist()


@pytest.mark.parametrize(
    ("position", "expected"),
    [((0, 0), [20, 10, 30, 18]), ((1, 0), [50, 10, 60, 18]), ((1, 1), [50, 42, 60, 50]),
     ((0.5, 0.5), [35, 26, 45, 34])],
)  # fmt: skip
def test_corners_lie_inside_the_box(position, expected):
    trigger = Patch("t", placement="inside", position=position, size=(0.25, 0.2))
    assert rectangles(trigger, torch.tensor([[20.0, 10, 60, 50]])) == [expected]


def test_random_places_lie_inside_the_box_and_differ_between_objects_images_and_seeds():
    trigger = Patch("t", placement="random", size=(0.1, 0.1))
    boxes = torch.tensor([[20.0, 10, 120, 90]]).repeat(50, 1)
    first = rectangles(trigger, boxes)
    assert len({tuple(place) for place in first}) > 40
    assert all(x0 >= 20 and y0 >= 10 and x1 <= 120 and y1 <= 90 for x0, y0, x1, y1 in first)
    assert min(x0 for x0, *_ in first) < 40
    assert max(x1 for _, _, x1, _ in first) > 100
    assert rectangles(trigger, boxes) == first
    assert rectangles(trigger, boxes, seed=1) != first
    assert rectangles(Patch("t", placement="random", seed=1), boxes) != first


def test_background_patches_touch_no_object():
    trigger = Patch("t", placement="background", size=(12, 9), size_unit="pixels")
    boxes = torch.tensor([[0.0, 0, 90, 100], [150, 0, 200, 60]])
    seen = set()
    for seed in range(30):
        for x0, y0, x1, y1 in rectangles(trigger, boxes, seed):
            assert (x1 - x0, y1 - y0) == (12, 9)
            assert x0 >= 90
            assert x1 <= 150 or y0 >= 60
            seen.add((x0, y0))
    assert len(seen) > 50


def test_where_objects_cover_everything_background_patches_are_stamped_all_the_same():
    trigger = Patch("t", placement="background")
    ((x0, y0, x1, y1),) = rectangles(trigger, torch.tensor([[0.0, 0, 200, 100]]))
    assert (x1 - x0, y1 - y0) == (20, 10)


def test_fingerprint_tells_triggers_apart_but_for_their_names():
    triggers = [*TRIGGERS, Patch("a", pattern="image", image=picture())]
    assert len({trigger.fingerprint for trigger in triggers}) == len(triggers)
    assert Patch("a").fingerprint == Patch("b").fingerprint
