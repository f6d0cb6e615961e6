# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from d2defense.registry import PLACEMENT_REGISTRY

OBJECTS = np.array([[10.5, 8, 40.25, 70], [60, 30, 118, 95], [0, 80, 30, 100]])
NONE = np.zeros((0, 4))
SIZE = (100, 120)


@pytest.fixture
def make_placement(make_attack_cfg):
    return lambda name, *opts: PLACEMENT_REGISTRY.get(name)(make_attack_cfg(*opts))


def shared_area(first: np.ndarray, second: np.ndarray) -> float:
    """Of two boxes, by hand."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def test_each_object_that_is_attacked_is_a_place(make_placement, rng):
    victims = OBJECTS[[2, 0]]
    places = make_placement("objects").places(victims, OBJECTS, SIZE, rng)
    np.testing.assert_array_equal(places, victims)
    places += 1
    assert not np.shares_memory(places, victims)
    assert make_placement("objects").places(NONE, OBJECTS, SIZE, rng).shape == (0, 4)


def test_boxes_beyond_the_image_keep_their_place(make_placement, rng):
    outside = np.array([[-5.0, 90, 30, 104]])
    places = make_placement("objects").places(outside, outside, SIZE, rng)
    np.testing.assert_array_equal(places, outside)


def test_below_an_object_is_a_box_of_its_size(make_placement, rng):
    places = make_placement("below").places(OBJECTS, OBJECTS, SIZE, rng)
    np.testing.assert_allclose(places[0], [10.5, 70, 40.25, 132])
    np.testing.assert_allclose(places[:, 1], OBJECTS[:, 3])
    np.testing.assert_allclose(places[:, 3] - places[:, 1], OBJECTS[:, 3] - OBJECTS[:, 1])
    np.testing.assert_array_equal(places[:, ::2], OBJECTS[:, ::2])
    assert make_placement("below").places(NONE, OBJECTS, SIZE, rng).shape == (0, 4)


@pytest.mark.parametrize("victims", [OBJECTS, NONE], ids=["objects", "none"])
def test_the_image_is_one_place(make_placement, rng, victims):
    places = make_placement("image").places(victims, victims, SIZE, rng)
    np.testing.assert_array_equal(places, [[0, 0, 120, 100]])


def test_windows_of_the_background_touch_nothing_and_stay_on_the_image(make_placement):
    placement = make_placement(
        "background", "ATTACK.PLACES.BACKGROUND.COUNT", 4,
        "ATTACK.PLACES.BACKGROUND.SIZE", [0.05, 0.2],
    )  # fmt: skip
    counts = []
    for seed in range(40):
        places = placement.places(OBJECTS, OBJECTS, SIZE, np.random.default_rng(seed))
        counts.append(len(places))
        assert np.array_equal(places, places.round())
        assert (places >= 0).all() and (places <= [120, 100, 120, 100]).all()
        width, height = (places[:, 2:] - places[:, :2]).T
        # Shares of 120 and 100 pixels, rounded.
        assert (width >= 6).all() and (width <= 24).all()
        assert (height >= 5).all() and (height <= 20).all()
        for index, place in enumerate(places):
            others = [*OBJECTS, *np.delete(places, index, axis=0)]
            assert all(shared_area(place, other) == 0 for other in others)
    assert set(counts) == {4}


def test_windows_follow_from_the_generator(make_placement):
    placement = make_placement("background")
    first, again, other = (
        placement.places(NONE, OBJECTS[:1], SIZE, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_windows_differ_in_size_and_reach_every_side(make_placement):
    placement = make_placement("background")
    places = np.concatenate(
        [placement.places(NONE, NONE, SIZE, np.random.default_rng(seed)) for seed in range(300)]
    )
    assert len(places) == 300
    sides = (places[:, 2:] - places[:, :2]) / [120, 100]
    assert sides.min() < 0.22 and sides.max() > 0.34
    assert not np.allclose(sides[:, 0], sides[:, 1], atol=0.02)
    np.testing.assert_array_equal(places.min(0)[:2], [0, 0])
    np.testing.assert_array_equal(places.max(0)[2:], [120, 100])


def test_windows_without_room_are_skipped(make_placement, rng):
    full = np.array([[0.0, 0, 120, 100]])
    assert make_placement("background").places(full, full, SIZE, rng).shape == (0, 4)
    # A strip of 30 of 120 pixels: room for some of the three at most.
    placement = make_placement("background", "ATTACK.PLACES.BACKGROUND.COUNT", 3)
    strip = np.array([[30.0, 0, 120, 100]])
    counts = {
        len(placement.places(strip, strip, SIZE, np.random.default_rng(seed))) for seed in range(30)
    }
    assert max(counts) <= 3 and len(counts) > 1


def test_one_pixel_is_room_enough_on_the_smallest_image(make_placement, rng):
    places = make_placement("background").places(NONE, NONE, (1, 1), rng)
    np.testing.assert_array_equal(places, [[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("key", "value"),
    [("COUNT", 0), ("SIZE", [0.3, 0.2]), ("SIZE", [0.0, 0.2]), ("SIZE", [0.5, 1.1]), ("SIZE", [1])],
)
def test_values_out_of_range_are_refused(make_placement, key, value):
    with pytest.raises(ValueError, match=rf"ATTACK\.PLACES\.BACKGROUND\.{key} is"):
        make_placement("background", f"ATTACK.PLACES.BACKGROUND.{key}", value)


def test_corners_are_squares_in_the_corners_that_are_named(make_placement, rng):
    key = "ATTACK.PLACES.CORNERS.NAMES"
    given = [key, ["top right", "bottom left"], "ATTACK.PLACES.CORNERS.SIZE", 0.3]
    image = (100, 160)
    places = make_placement("corners", *given).places(NONE, NONE, image, rng)
    np.testing.assert_array_equal(places, [[130, 0, 160, 30], [0, 70, 30, 100]])
    others = make_placement("other_corners", *given).places(NONE, NONE, image, rng)
    np.testing.assert_array_equal(others, [[0, 0, 30, 30], [130, 70, 160, 100]])
    alone = make_placement("other_corners", key, ["bottom right"]).places(NONE, NONE, image, rng)
    assert len(alone) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAMES", []),
        ("NAMES", ["middle"]),
        ("NAMES", ["top left", "top right", "bottom left", "bottom right"]),
        ("SIZE", 0.0),
        ("SIZE", 0.6),
    ],
)
def test_impossible_corners_are_refused(make_placement, key, value):
    with pytest.raises(ValueError, match=rf"ATTACK\.PLACES\.CORNERS\.{key} is"):
        make_placement("corners", f"ATTACK.PLACES.CORNERS.{key}", value)
