# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from d2defense.config.described import load_described

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"sizes": {"type": "array", "items": {"type": "integer"}}},
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_what_fits_is_read(tmp_path):
    assert load_described(written(tmp_path, "sizes: [3, 4]"), SCHEMA) == {"sizes": [3, 4]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sizes: [3, 4.5]", "sizes/1: 4.5 is not of type 'integer'"),
        ("size: [3]", "the file: Additional properties are not allowed ('size' was unexpected)"),
        ("", "the file: None is not of type 'object'"),
        ("sizes: [3,\nsizes", "cannot be read: while parsing a flow sequence"),
        (b"sizes: \xff", "cannot be read:"),
        ("[" * 100_000, "cannot be read:"),
        ("#" * (1 << 20) + "\nsizes: [3]", "cannot be read: larger than 1048576 bytes"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_by_file_and_place(tmp_path, text, complaint):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as refusal:
        load_described(path, SCHEMA)
    assert str(refusal.value).startswith(f"{path}: {complaint}")
    assert "\n" not in str(refusal.value)


def test_a_long_value_is_not_repeated_as_a_whole(tmp_path):
    path = written(tmp_path, f"sizes: [{'a' * 5000}]")
    with pytest.raises(ValueError) as refusal:
        load_described(path, SCHEMA)
    assert len(str(refusal.value)) < len(str(path)) + 400


@pytest.mark.parametrize("name", ["file.yaml", "."])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be read"):
        load_described(tmp_path / name, SCHEMA)
