# SPDX-License-Identifier: Apache-2.0
"""The figures of a repair: which detectors they show."""

from __future__ import annotations

import struct

import pytest

from d2defense.report.repair_figures import ShownDetector, draw_repair


def width(png: bytes) -> int:
    assert png.startswith(b"\x89PNG")
    return struct.unpack(">I", png[16:20])[0]


@pytest.fixture
def shown(make_result, make_example):
    def make(label: str, **changes) -> ShownDetector:
        pair = (make_example(), make_example(missed=True))
        return ShownDetector(label, make_result(**changes), [pair, pair])

    return make


def test_a_clean_detector_is_shown_beside_if_there_is_one(shown):
    before, after = shown("before"), shown("after")
    two = draw_repair(before, after, None, epsilon=0.1)
    three = draw_repair(before, after, shown("clean_0"), epsilon=0.1)
    assert two.keys() == three.keys()
    assert two.keys() == {"histograms", "heatmaps", "examples_before", "examples_after"}
    for name in ("histograms", "heatmaps"):
        assert width(three[name]) > 1.3 * width(two[name])


def test_a_scan_without_a_histogram_is_left_out_of_them(shown, make_result):
    before, after = shown("before"), shown("after")
    both = draw_repair(before, after, None, epsilon=0.1)
    other_bins = {"edges": [0, 0.3, 0.6, 1], "clean": [1, 2, 3], "triggered": [3, 2, 1]}
    for histogram in (None, other_bins):
        one = draw_repair(shown("before", histogram=histogram), after, None, epsilon=0.1)
        assert width(one["histograms"]) < width(both["histograms"])
        assert width(one["heatmaps"]) == width(both["heatmaps"])
    failed = (shown(label, histogram=None) for label in ("before", "after"))
    assert "histograms" not in draw_repair(*failed, None, epsilon=0.1)
