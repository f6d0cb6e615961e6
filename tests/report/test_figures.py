# SPDX-License-Identifier: Apache-2.0
"""Figures are PNG files that show what they are given."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2defense.report import figures


def pixels(png: bytes) -> np.ndarray:
    """The decoded figure, uint8 [H, W, 3]; fails on a broken file."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def share_of_color(png: bytes, color: str, tolerance: int = 24) -> float:
    """The share of pixels near a colour like ``#009E73``."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels(png).astype(int) - wanted).max(axis=2) <= tolerance).mean())


def test_map_takes_the_largest_value_where_boxes_overlap():
    heat = figures.inconsistency_map((4, 6), [[0, 0, 4, 4], [2, 1, 6, 3]], [0.2, 0.9])
    expected = np.array(
        [
            [0.2, 0.2, 0.2, 0.2, 0, 0],
            [0.2, 0.2, 0.9, 0.9, 0.9, 0.9],
            [0.2, 0.2, 0.9, 0.9, 0.9, 0.9],
            [0.2, 0.2, 0.2, 0.2, 0, 0],
        ]
    )
    np.testing.assert_array_equal(heat, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            *[st.floats(-5, 25, allow_nan=False)] * 4,
            st.floats(0, 1, allow_nan=False),
        ),
        max_size=6,
    )
)
def test_map_equals_a_walk_over_pixel_centres(rows):
    boxes = np.array([row[:4] for row in rows]).reshape(-1, 4)
    s = np.array([row[4] for row in rows])
    expected = np.zeros((13, 17))
    for y in range(13):
        for x in range(17):
            for (left, top, right, bottom), value in zip(boxes, s, strict=True):
                if left <= x + 0.5 < right and top <= y + 0.5 < bottom:
                    expected[y, x] = max(expected[y, x], value)
    np.testing.assert_array_equal(figures.inconsistency_map((13, 17), boxes, s), expected)


def test_map_ignores_what_is_not_finite_and_what_is_outside():
    boxes = [[np.nan, 0, 3, 3], [0, 0, np.inf, 2], [0, 0, 3, 3], [-9, -9, -1, -1]]
    heat = figures.inconsistency_map((3, 3), boxes, [0.5, 0.5, np.nan, 0.5])
    assert not heat.any()


def test_map_refuses_boxes_without_values():
    with pytest.raises(ValueError, match="2 boxes for 1"):
        figures.inconsistency_map((3, 3), np.zeros((2, 4)), [0.1])


def test_found_needs_an_overlap_of_half():
    targets = [[0, 0, 10, 10], [20, 20, 30, 30]]
    detections = [[0, 0, 10, 5], [20, 20, 30, 24.9]]
    assert figures.found_objects(targets, detections).tolist() == [True, False]
    assert figures.found_objects(targets, []).tolist() == [False, False]
    assert figures.found_objects([], detections).tolist() == []


def test_examples_outline_missed_objects_only_where_some_are_missed(make_example):
    clean = make_example()
    attacked = figures.draw_examples([(clean, make_example(missed=True))], "white patch")
    harmless = figures.draw_examples([(clean, clean)], "white patch")
    assert share_of_color(attacked, figures.MISSED_COLOR) > 0.0005
    assert share_of_color(harmless, figures.MISSED_COLOR) < share_of_color(
        attacked, figures.MISSED_COLOR
    )
    assert share_of_color(harmless, figures.FOUND_COLOR) > share_of_color(
        attacked, figures.FOUND_COLOR
    )


def test_heat_map_is_brighter_where_inconsistency_is_large(make_example):
    image = pixels(
        figures.draw_heatmaps(
            {"clean": make_example(), "backdoored": make_example(missed=True)}, "Figure 3"
        )
    ).astype(float)
    brightness = image[200:800].mean(axis=2)
    half = brightness.shape[1] * 9 // 20
    # Left and right panel show the same image; the colour bar lies right of both.
    assert brightness[:, half : 2 * half].mean() > brightness[:, :half].mean() + 5


def test_topk_limits_the_proposals_of_the_heat_map(make_example):
    example = make_example(missed=True)
    best_only = pixels(figures.draw_heatmaps({"m": example}, "t", topk=1)).astype(int)
    both = pixels(figures.draw_heatmaps({"m": example}, "t", topk=2)).astype(int)
    assert best_only.shape == both.shape
    assert both.mean() > best_only.mean()


def test_heights_grow_with_the_number_of_examples(make_example):
    pair = (make_example(), make_example(missed=True))
    one = pixels(figures.draw_examples([pair], "t"))
    three = pixels(figures.draw_examples([pair] * 3, "t"))
    assert three.shape[1] == one.shape[1]
    assert three.shape[0] > 2 * one.shape[0]


def test_figures_of_photos_stay_small(make_example):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    example = dataclasses.replace(make_example(), image=photo)
    png = figures.draw_examples([(example, example)] * 3, "noise, the worst case")
    assert len(png) < 600_000
    pixels(png)


def test_an_example_without_objects_or_proposals_is_drawn(make_example):
    empty = dataclasses.replace(
        make_example(),
        target_boxes=[],
        proposal_boxes=[],
        objectness=[],
        foreground=[],
        detection_boxes=[],
        detection_scores=[],
        detection_classes=[],
    )
    assert share_of_color(figures.draw_heatmaps({"none": empty}, "t"), figures.FOUND_COLOR) == 0


def test_labels_from_outside_are_not_read_as_mathematics(make_example):
    hostile = "$\\frac{$ \x1b[31m\n" * 9
    pair = (make_example(class_name=hostile), make_example(class_name=hostile))
    pixels(figures.draw_examples([pair], hostile))
    pixels(figures.draw_histograms([0, 1], {hostile: [1]}, hostile))


def test_histogram_shows_density_where_counts_are():
    edges = np.linspace(0, 1, 11)
    low = pixels(figures.draw_histograms(edges, {"a": [10] + [0] * 9}, "t"))
    high = pixels(figures.draw_histograms(edges, {"a": [0] * 9 + [10]}, "t"))
    middle = low.shape[1] // 2
    ink = [
        [(half < 250).any(axis=2).sum() for half in (i[:, :middle], i[:, middle:])]
        for i in (low, high)
    ]
    assert ink[0][0] > ink[1][0]
    assert ink[1][1] > ink[0][1]


def test_histograms_take_panels_and_empty_counts():
    panels = {"clean_0": {"clean": [3, 1]}, "backdoored_0": {"clean": [0, 0], "white": [1, 3]}}
    wide = pixels(figures.draw_histograms([0, 0.5, 1], panels, "t"))
    narrow = pixels(figures.draw_histograms([0, 0.5, 1], {"clean": [0, 0]}, "t"))
    assert wide.shape[1] > narrow.shape[1]


def test_bars_follow_the_values():
    before = {"clean": {"AP50": 88.0}, "triggered": {"AP50": 30.0}, "asr": 0.7}
    after = {"clean": {"AP50": 87.0}, "triggered": {"AP50": 80.0}, "asr": 0.1}
    blue = figures.SERIES_COLORS[0]
    repaired = figures.draw_before_after(before, after)
    unrepaired = figures.draw_before_after(before, {**after, "triggered": {"AP50": 30.0}})
    assert share_of_color(repaired, blue) > share_of_color(unrepaired, blue) + 0.01


def test_the_last_bars_are_of_what_went_farthest_before():
    before = {"asr": 0.02, "search": {"ghost": 0.9, "disappearance": 0.1}}
    after = {"asr": 0.5, "search": {"ghost": 0.1}}
    few = {**after, "asr": 0.01}
    drawn = pixels(figures.draw_before_after(before, after))
    assert np.array_equal(drawn, pixels(figures.draw_before_after(before, few)))
    more = {**after, "search": {"ghost": 0.4}}
    assert not np.array_equal(drawn, pixels(figures.draw_before_after(before, more)))


def test_bars_without_data_are_left_out():
    assert share_of_color(figures.draw_before_after({}, {}), figures.SERIES_COLORS[0]) < 0.005


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.draw_examples([], "t"),
        lambda: figures.draw_heatmaps({}, "t"),
        lambda: figures.draw_histograms([0, 1], {}, "t"),
        lambda: figures.draw_histograms([0, 1], {"a": [1, 2]}, "t"),
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match=r"no |counts for"):
        draw()
