# SPDX-License-Identifier: Apache-2.0
"""Polygons and their textures, pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from d2defense.config import get_d2defense_cfg
from d2defense.triggers import Patch, build_trigger

DEFAULTS = {"SIDES": 5, "IRREGULARITY": 0.5, "TURN": "fixed", "ANGLE": 0.0, "TEXTURE": "none"}


def polygon(name: str, settings: dict[str, object] | None = None, **values) -> Patch:
    own = tuple(sorted((DEFAULTS | (settings or {})).items()))
    values = {"size": (1.0, 1.0), "placement": "inside", "position": (0.0, 0.0)} | values
    return Patch(name, pattern="polygon", settings=own, **values)


TRIGGERS = [
    polygon("default"),
    polygon("triangle", {"SIDES": 3, "IRREGULARITY": 1.0, "ANGLE": 77.0}, seed=2),
    polygon("regular", {"SIDES": 9, "IRREGULARITY": 0.0, "ANGLE": -13.0}, opacity=0.6),
    polygon("by trigger", {"TURN": "trigger", "ANGLE": 5.0}, seed=2**35 + 9),
    polygon("by object", {"TURN": "object", "SIDES": 4, "IRREGULARITY": 0.8}, seed=4),
    polygon("fog", {"TEXTURE": "fog"}, color=(200, 0, 0), cells=3),
    polygon("frost", {"TEXTURE": "frost", "TURN": "object"}, color=(0, 0, 200), cells=1),
    polygon("snow", {"TEXTURE": "snow"}, color=(64, 64, 64), cells=2, seed=2**33 + 1),
    polygon("spatter", {"TEXTURE": "spatter"}, color=(0, 200, 0), cells=5),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


@pytest.fixture
def outline(uniform_by_hand):
    """A function (trigger, key) to corners and middle in shares of the patch."""

    def by_hand(trigger, key):
        own, corners = dict(trigger.settings), []
        turn = math.radians(own["ANGLE"])
        if own["TURN"] != "fixed":
            turn = math.tau * uniform_by_hand(
                0x7475726E, *(key if own["TURN"] == "object" else [trigger.seed])
            )
        for number in range(own["SIDES"]):
            along, inwards = (
                uniform_by_hand(0x706F6C79, trigger.seed, number, part) for part in (0, 1)
            )
            # At most a fifth of the way to the next corner, and half of that to the middle.
            number += 0.2 * own["IRREGULARITY"] * (2 * along - 1)
            radius = 1 - 0.5 * own["IRREGULARITY"] * inwards
            angle = math.tau * number / own["SIDES"] + turn
            corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
        (x1, x2), (y1, y2) = ((min(line), max(line)) for line in zip(*corners, strict=True))
        scaled = [((x - x1) / (x2 - x1), (y - y1) / (y2 - y1)) for x, y in corners]
        return scaled, (-x1 / (x2 - x1), -y1 / (y2 - y1))

    return by_hand


@pytest.fixture
def texture(uniform_by_hand):
    """A function (trigger, x, y in shares of the patch) to the colour there."""

    def by_hand(trigger, u, v):
        def draw(*parts):
            return uniform_by_hand(0x74657874, trigger.seed, *parts)

        def field(times):
            x, y = u * times * trigger.cells, v * times * trigger.cells
            return math.floor(x), math.floor(y), x % 1, y % 1

        def cloud(times):
            column, row, x, y = field(times)
            x, y = (3 * t**2 - 2 * t**3 for t in (x, y))
            return sum(
                (x if right else 1 - x)
                * (y if down else 1 - y)
                * draw(times, column + right, row + down)
                for right in (0, 1)
                for down in (0, 1)
            )

        def flake(times):
            column, row, x, y = field(times)
            radius, across, down = (draw(times, column, row, part) for part in (1, 2, 3))
            radius /= 4
            middle = (radius + place * (1 - 2 * radius) for place in (across, down))
            return math.dist((x, y), tuple(middle)) < radius

        def cut(share):
            return min(max(share, 0), 1)

        name = dict(trigger.settings)["TEXTURE"]
        color, share = {
            "none": lambda: ((0, 0, 0), 0),
            "fog": lambda: ((205, 210, 215), 0.6 * cloud(1) + 0.3 * cloud(2)),
            "frost": lambda: (
                (225, 240, 250),
                0.25 * cloud(1) + max(0, 1 - 10 * abs(cloud(2) - 0.5)),
            ),
            "snow": lambda: ((250, 250, 255), float(flake(2) or flake(3))),
            "spatter": lambda: ((75, 50, 30), 0.9 * cut(8 * cloud(2) - 4.4)),
        }[name]()
        return np.array(trigger.color) * (1 - cut(share)) + np.array(color) * cut(share)

    return by_hand


def winds_around(corners: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether the sides, seen from a point, go once around it."""
    angles = [math.atan2(b - y, a - x) for a, b in corners]
    turns = zip(angles, angles[1:] + angles[:1], strict=True)
    return abs(sum((b - a + math.pi) % math.tau - math.pi for a, b in turns)) > 3


@each_trigger
@pytest.mark.parametrize(
    ("dtype", "image_format"),
    [(torch.uint8, "BGR"), (torch.uint8, "RGB"), (torch.float32, "BGR")],
)
def test_a_place_is_painted_inside_the_polygon(
    trigger, dtype, image_format, awkward_batch, stamp_by_hand, outline, texture
):
    def paint(place):
        pixels = place.pixels.copy()
        corners, middle = outline(trigger, place.key)
        held = int(middle[0] * place.width), int(middle[1] * place.height)
        for j, i in np.ndindex(pixels.shape[:2]):
            column, row = i + place.left, j + place.top
            u, v = (column + 0.5) / place.width, (row + 0.5) / place.height
            if winds_around(corners, u, v) or (column, row) == held:
                below = (1 - trigger.opacity) * pixels[j, i]
                pixels[j, i] = trigger.opacity * texture(trigger, u, v) / 255 + below
        return pixels

    batch = awkward_batch(dtype)
    expected = stamp_by_hand(trigger.seed, paint, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    off = np.abs(got - expected)
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.001
    else:
        assert off.max() < 1e-3


def shape(trigger: Patch, width: int = 101, height: int = 101, seed: int = 0, count: int = 1):
    """Which pixels of each of some equal places the polygon covers."""
    images = torch.zeros(1, 3, height, width * count, dtype=torch.uint8)
    places = torch.tensor([[width * n, 0, width * (n + 1), height] for n in range(count)])
    stamped = trigger.apply(images, [tuple(images.shape[-2:])], [places], [seed])
    return (stamped[0].amax(0) > 0).chunk(count, dim=1)


@pytest.mark.parametrize("sides", range(3, 10))
def test_it_has_as_many_corners_as_it_has_sides(sides):
    for seed in range(3):
        (covered,) = shape(
            polygon("it", {"SIDES": sides, "IRREGULARITY": 0.2}, seed=seed), 301, 301
        )
        (found,), _ = cv2.findContours(
            covered.byte().numpy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        assert len(cv2.approxPolyDP(found, 8, True)) == sides


def test_a_regular_one_has_the_area_of_the_book():
    for sides in (3, 4, 7):
        (covered,) = shape(polygon("it", {"SIDES": sides, "IRREGULARITY": 0.0}), 401, 401)
        corners = 2 * math.pi * np.arange(sides) / sides
        area = sides * math.sin(2 * math.pi / sides) / 2
        area /= np.ptp(np.sin(corners)) * np.ptp(np.cos(corners))
        assert covered.float().mean().item() == pytest.approx(area, abs=0.01)
        # The first corner is at the top.
        assert covered[2, 200] and not covered[2, :190].any() and not covered[2, 211:].any()


@pytest.mark.parametrize("turn", ["fixed", "trigger", "object"])
def test_it_touches_all_sides_of_the_patch_and_covers_a_pixel_of_the_smallest(turn):
    for seed in range(8):
        trigger = polygon("it", {"SIDES": 3, "IRREGULARITY": 1.0, "TURN": turn}, seed=seed)
        (covered,) = shape(trigger, 301, 201)
        rows, columns = covered.nonzero().unbind(1)
        assert columns.min() <= 6 and columns.max() >= 294
        assert rows.min() <= 6 and rows.max() >= 194
        for width, height in ((1, 1), (2, 1), (1, 3), (2, 2), (3, 3)):
            assert shape(trigger, width, height)[0].any()


def test_the_seed_draws_shapes_and_each_object_is_turned_if_asked():
    def count(settings, seeds):
        trigger = [polygon("it", settings, seed=seed) for seed in seeds]
        return len({each.numpy().tobytes() for t in trigger for each in shape(t, count=3)})

    assert count({}, range(4)) == 4
    assert count({"IRREGULARITY": 0.0}, range(4)) == 1
    assert count({"IRREGULARITY": 0.0, "TURN": "trigger"}, range(4)) == 4
    assert count({"IRREGULARITY": 0.0, "TURN": "object"}, range(4)) == 12
    # By 72 degrees, a regular polygon of five sides is the same.
    assert count({"IRREGULARITY": 0.0, "ANGLE": 72.0}, [0]) == 1
    same = [shape(polygon("it", {"IRREGULARITY": 0.0, "ANGLE": a}))[0] for a in (0.0, 72.0, 30.0)]
    assert (same[0] ^ same[1]).float().mean() < 0.001 < 0.02 < (same[0] ^ same[2]).float().mean()


@each_trigger
def test_the_images_given_stay_and_no_batch_or_order_matters(trigger, awkward_batch):
    images, sizes, places, seeds = awkward_batch()
    before = images.clone()
    together = trigger.apply(images, sizes, places, seeds)
    assert torch.equal(images, before)
    order = [2, 3, 0, 1]
    shuffled = trigger.apply(
        images[order], *([x[i] for i in order] for x in (sizes, places, seeds))
    )
    assert torch.equal(shuffled, together[order])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"SIDES": 2}, "SIDES 2 is no whole number in 3..9"),
        ({"SIDES": 10}, "SIDES 10"),
        ({"SIDES": 4.5}, "SIDES 4.5"),
        ({"IRREGULARITY": 1.1}, "IRREGULARITY 1.1 is not in 0..1"),
        ({"ANGLE": float("nan")}, "ANGLE nan is not in -360..360"),
        ({"TURN": "around"}, "TURN 'around' is none of fixed, trigger, object"),
        ({"TEXTURE": "rain"}, "TEXTURE 'rain' is none of none, fog, frost, snow, spatter"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(settings, words, refuses):
    values = {"pattern": "polygon", "settings": tuple((DEFAULTS | settings).items())}
    refuses(Patch, values, words)


def test_a_config_and_a_bank_entry_are_one_trigger():
    cfg = get_d2defense_cfg()
    cfg.merge_from_list(
        [
            *("ATTACK.TRIGGER.PATCH.PATTERN", "polygon", "ATTACK.SEED", "3"),
            *("ATTACK.TRIGGER.PATCH.SETTINGS.POLYGON.ANGLE", "45.0"),
            *("ATTACK.TRIGGER.PATCH.SETTINGS.POLYGON.TEXTURE", "snow"),
        ]
    )
    of_config = build_trigger(cfg)
    settings = {"ANGLE": 45, "TEXTURE": "snow"}
    entry = {"name": "it", "pattern": "polygon", "seed": 3, "settings": settings}
    of_entry = Patch.from_entry(entry, Path())
    assert of_config.settings == of_entry.settings == tuple(sorted((DEFAULTS | settings).items()))
    assert of_config.fingerprint == of_entry.fingerprint


def test_every_setting_counts_in_the_fingerprint():
    changes = [
        {}, {"SIDES": 6}, {"IRREGULARITY": 0.1}, {"TURN": "object"}, {"ANGLE": 1.0},
        {"TEXTURE": "fog"},
    ]  # fmt: skip
    assert len({polygon("it", change).fingerprint for change in changes}) == len(changes)
