# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 -- reports use the true minus sign and the en dash
"""Numbers and foreign strings read the same everywhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2defense import text


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs", "Cf", "Cc"])))
def test_printable_text_can_be_written_and_does_nothing(value):
    shown = text.printable(value)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_escape_sequences_are_spelled_out():
    assert text.printable("a\x1b[2J\u202eb\n") == r"a\x1b[2J\u202eb\n"


@pytest.mark.parametrize("width", [1, 2, 7, 40])
def test_shortened_text_fits_and_keeps_both_ends(width):
    short = text.shorten("abcdefghijklmnopqrstuvwxyz" * 3, width)
    assert len(short) == width
    if width >= 3:
        assert short[0] == "a"
        assert short[-1] == "z"
    assert text.shorten("x" * width, width) == "x" * width


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.number(None), "–"),
        (text.number(math.nan), "–"),
        (text.number(-0.5), "−0.50"),
        (text.number(-0.001), "0.00"),
        (text.number(0.25, signed=True), "+0.25"),
        (text.number(0.0, signed=True), "0.00"),
        (text.interval(None), "–"),
        (text.interval([-0.1, 0.2], signed=True), "[−0.10, +0.20]"),
        (text.probability(0.00003), "< 0.0001"),
        (text.probability(0.0023), "0.0023"),
        (text.probability(0.5), "0.50"),
        (text.probability(None), "–"),
        (text.file_size(None), "–"),
        (text.file_size(999), "999 bytes"),
        (text.file_size(1_500_000), "1.5 MB"),
        (text.file_size(2 * 10**13), "20.0 TB"),
        (text.duration(None), "–"),
        (text.duration(3.21), "3.2 s"),
        (text.duration(185), "3 min 5 s"),
    ],
)
def test_numbers(shown, expected):
    assert shown == expected
