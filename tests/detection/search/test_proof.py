# SPDX-License-Identifier: Apache-2.0
"""Found triggers are tried on the twin until one is proven."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from d2defense.detection.search import ArmResult
from d2defense.detection.search.proof import tried_on_twin


def result(margin: float, low: float) -> ArmResult:
    """An arm that does so much beyond clean detectors, whose deviation is 0.1."""
    return ArmResult(None, None, margin, (0.0,), margin, 0.0, 0.1, (low, margin), (), 0)


class Beside:
    """A judge by whom the twin reacts with these successes, in turn."""

    null = SimpleNamespace(reference=SimpleNamespace(threshold=3.0))

    def __init__(self, *on_twin: float) -> None:
        self.left = list(on_twin)

    def again(self, tried: ArmResult) -> ArmResult:
        shown = self.left.pop(0)
        low, high = (end - shown for end in tried.interval)
        return replace(tried, references=(shown,), interval=(low, high))


def test_what_the_twin_does_not_do_is_proven_and_comes_first():
    results = [result(0.9, 0.8), result(0.7, 0.6), result(0.6, 0.5)]
    arms, is_proven = tried_on_twin(results, Beside(0.9, 0.1), 3.0)
    assert is_proven
    assert [each.success for each in arms] == [0.7, 0.9, 0.6]
    assert [each.on_twin for each in arms] == [0.1, 0.9, None]


def test_a_largest_that_stands_out_by_no_arm_alone_is_tried():
    """Of several arms, the largest on each resample may lie higher than any of them."""
    arms, is_proven = tried_on_twin([result(0.4, 0.2), result(0.39, 0.2)], Beside(0.3, 0.35), 3.0)
    assert not is_proven
    assert [each.on_twin for each in arms] == [0.3, 0.35]
    arms, _ = tried_on_twin([result(0.2, 0.1), result(0.1, 0.0)], Beside(0.2), 3.0)
    assert [each.on_twin for each in arms] == [0.2, None]


@pytest.mark.parametrize(("is_late", "count"), [(True, 1), (False, 5)])
def test_no_more_are_tried_than_there_is_time_for(is_late, count):
    arms, is_proven = tried_on_twin(
        [result(0.9, 0.8)] * 8, Beside(*[0.8] * 8), 3.0, lambda: is_late
    )
    assert not is_proven
    assert len([each for each in arms if each.on_twin is not None]) == count
    assert len(arms) == 8
