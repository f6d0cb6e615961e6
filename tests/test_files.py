# SPDX-License-Identifier: Apache-2.0
"""Whole-file writes: what is left, and what is said, where one fails."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from d2defense.files import clear_place, open_whole, write_bytes


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """As if there were room for files of so many bytes: the system then fails writes alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Of what is small nothing is written before the file is closed.
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_full_disk_leaves_the_file_of_before_and_names_it(tmp_path, size):
    path = tmp_path / "a.json"
    path.write_text("before")
    with full_disk(10), pytest.raises(OSError) as caught:
        write_bytes(path, bytes(size))
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (
        Path("/proc/nothing.xml"),
        tmp_path / "folder",
        tmp_path / "file" / "a.xml",
        tmp_path / ("a" * 300),
    ):
        with pytest.raises(OSError) as caught:
            write_bytes(path, b"content")
        assert caught.value.filename == str(path)
        assert str(caught.value).endswith(f": {str(path)!r}")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_errors_of_whoever_writes_are_left_as_they_are(tmp_path):
    for error in (OSError(5, "cannot be read", "other.bin"), BrokenPipeError(32, "nobody reads")):
        name = error.filename
        with pytest.raises(OSError) as caught, open_whole(tmp_path / "a.csv", "w") as stream:
            stream.write("half a line")
            raise error
        assert caught.value is error
        assert error.filename == name
    assert os.listdir(tmp_path) == []


def test_a_place_is_cleared_for_a_file_to_come(tmp_path):
    stale = tmp_path / "scan.sarif"
    stale.write_text("{}")
    clear_place(stale)
    clear_place(tmp_path / "new" / "scan.xml")
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == []


def test_only_files_make_place(tmp_path):
    """As root a file could be put where a device was."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OSError, match="not a file") as caught:
            clear_place(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
