# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import statistics

import pytest

from d2defense.study.tables import Spread, Table

VALUES = (0.25, 0.5, 0.9)


def test_markdown_shows_mean_and_deviation_and_csv_keeps_the_precision() -> None:
    spread = Spread.of([*VALUES, None])
    table = Table("t", "Title", ("detector", "ASR"), [["one", spread], ["two", Spread.of([])]])
    lines = table.markdown().splitlines()
    assert lines[0] == "**Title**"
    assert "0.55 ± 0.33" in lines[4]
    assert "\N{EN DASH}" in lines[5]

    one, two = csv.DictReader(io.StringIO(table.csv()))
    assert float(one["ASR"]) == pytest.approx(statistics.mean(VALUES), rel=1e-12)
    assert float(one["ASR: sd"]) == pytest.approx(statistics.stdev(VALUES), rel=1e-12)
    assert one["ASR: n"] == "3"
    assert two["ASR"] == ""


def test_a_single_value_has_no_deviation() -> None:
    assert str(Spread((0.125,), 3)) == "0.125"
