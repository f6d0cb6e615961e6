# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import mmap
import os

import pytest

from d2defense.isolation import Limits, parse_size
from d2defense.isolation.limits import format_size, usage


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("8G", 8 << 30),
        ("8GiB", 8 << 30),
        ("1.5 gb", 3 << 29),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "8X", "-1G", "1e9", "8 G B", "\u0664G", "8G\n8G"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (3 << 29, "1.5 GiB"), (256 << 20, "256 MiB")]
)
def test_sizes_in_words(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize("limits", [{"seconds": 0.0}, {"memory_bytes": -1}])
def test_limits_are_positive(limits):
    with pytest.raises(ValueError, match="is not positive"):
        Limits(**limits)


def test_memory_of_a_process_is_its_own():
    size = 64 << 20
    before = usage(os.getpid()).memory_bytes
    # Pages straight from the system: the C library may have as much at hand already.
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:: mmap.PAGESIZE] = b"1" * (size // mmap.PAGESIZE)
        assert usage(os.getpid()).memory_bytes - before >= 60 << 20
    assert usage(2**22 + 1).memory_bytes == 0
