# SPDX-License-Identifier: Apache-2.0
"""Datasets share images whatever the files are called."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from d2defense.data import DatasetError
from d2defense.data.overlap import check_disjoint, overlapping_images


@pytest.fixture
def write(tmp_path):
    def write(name: str, seed: int, *options: int, size: int = 16) -> dict:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), pixels, list(options))
        return {"file_name": str(path)}

    return write


def test_the_same_pixels_are_found_under_another_name_and_encoding(write):
    ours = [write("a/1.png", 1), write("a/2.png", 2)]
    theirs = [write("b/1.png", 3), write("b/9.bmp", 2)]
    (pair,) = overlapping_images(ours, theirs)
    assert pair == (ours[1]["file_name"], theirs[1]["file_name"])
    with pytest.raises(DatasetError, match=r"ours and theirs share 1 images, .*a/2\.png"):
        check_disjoint("ours", ours, "theirs", theirs)


def test_other_images_are_fine(write):
    ours, theirs = [write("a/1.png", 1)], [write("b/1.png", 2), write("b/2.png", 1, size=8)]
    check_disjoint("ours", ours, "theirs", theirs)


def test_an_image_that_cannot_be_read_is_named(write, tmp_path):
    (tmp_path / "junk.png").write_bytes(b"junk")
    with pytest.raises(DatasetError, match=r"junk\.png: image cannot be read"):
        overlapping_images([write("a/1.png", 1)], [{"file_name": str(tmp_path / "junk.png")}])
