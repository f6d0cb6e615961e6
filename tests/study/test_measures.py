# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from d2defense.study.measures import recovered


def evaluation(found: float) -> dict:
    return {"triggered": {"objects_found": found}, "clean": {"objects_found": 1.0}}


class TestRecovered:
    @pytest.mark.parametrize(
        ("before", "after", "clean", "share"),
        [(0.2, 0.2, 0.8, 0.0), (0.2, 0.8, 0.8, 1.0), (0.2, 0.5, 0.8, 0.5), (0.2, 0.9, 0.8, 7 / 6)],
    )
    def test_is_the_share_of_what_the_attack_took(self, before, after, clean, share) -> None:
        got = recovered(*map(evaluation, (before, after, clean)))
        assert got == pytest.approx(share)

    def test_is_unknown_where_something_is_missing_or_nothing_was_taken(self) -> None:
        assert recovered(evaluation(0.5), None, evaluation(0.8)) is None
        assert recovered(evaluation(0.8), evaluation(0.8), evaluation(0.8)) is None
