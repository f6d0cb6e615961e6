# SPDX-License-Identifier: Apache-2.0
"""Which image files are usable: what Detectron2's reader makes of them decides."""

from __future__ import annotations

import io
import os
import re
import zlib

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from d2defense.data import DatasetError
from d2defense.data.image_files import check_share, describe_unusable, image_size, unusable_images

WIDTH, HEIGHT = 64, 48
ORIENTATION = 274


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture
def record(tmp_path):
    def make(content: bytes, width: int = WIDTH, height: int = HEIGHT) -> dict:
        path = tmp_path / "image"
        path.write_bytes(content)
        return {"image_id": 5, "file_name": str(path), "width": width, "height": height}

    return make


def reasons(record: dict) -> set[str | None]:
    """Why an image is unusable, decoded and not; None if it is not."""
    found = [unusable_images([record], decode) for decode in (True, False)]
    return {one[0].reason if one else None for one in found}


GOOD = {
    "jpeg": encoded(picture(), "JPEG"),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "grey jpeg": encoded(picture("L"), "JPEG"),
    "cmyk jpeg": encoded(picture("CMYK"), "JPEG"),
    "bytes behind the end": encoded(picture(), "JPEG") + b"trailer of a camera",
    "png": encoded(picture(), "PNG"),
    "palette": encoded(picture("P"), "PNG"),
    "transparent palette": encoded(picture("P"), "PNG", transparency=bytes(range(256))),
    "alpha": encoded(picture("RGBA"), "PNG"),
    "grey and alpha": encoded(picture("LA"), "PNG"),
    "one bit": encoded(picture("1"), "PNG"),
    "16 bits that hold 8": encoded(picture("L").convert("I;16"), "PNG"),
    "webp": encoded(picture(), "WEBP"),
    "gif": encoded(picture("P"), "GIF"),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(picture("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_detectron2_reads_is_usable(record, name):
    image = record(GOOD[name])
    assert read_image(image["file_name"], "BGR").shape == (HEIGHT, WIDTH, 3)
    assert reasons(image) == {None}
    assert image_size(image["file_name"]) == (WIDTH, HEIGHT)


def bomb() -> bytes:
    """A PNG that claims 100,000 x 100,000 pixels."""
    content = bytearray(GOOD["png"])
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"<html>404 not found</html>", "no image of a known format"),
    "zeros": (bytes(4000), "no image of a known format"),
    "jpeg header": (GOOD["jpeg"][:20], "no image of a known format"),
    "half a jpeg": (GOOD["jpeg"][: len(GOOD["jpeg"]) // 2], "cannot be read: .*truncated"),
    "half a progressive jpeg": (GOOD["progressive"][:-600], "cannot be read: .*truncated"),
    "half a png": (GOOD["png"][: len(GOOD["png"]) // 2], "cannot be read"),
    "broken png": (flipped(GOOD["png"], GOOD["png"].index(b"IDAT") + 4), "cannot be read"),
    "half a webp": (GOOD["webp"][: len(GOOD["webp"]) // 2], "cannot be read"),
    "half a tiff": (GOOD["tiff"][: len(GOOD["tiff"]) // 2], "cannot be read|no image"),
    "bomb": (bomb(), "cannot be read: .*bomb"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(record, name):
    content, reason = BAD[name]
    image = record(content)
    with pytest.raises(Exception):  # noqa: B017 whatever Pillow raises
        Image.open(image["file_name"]).load()
    for found in reasons(image):
        assert found is not None
        assert re.search(reason, found)
        assert found.isprintable()
    assert image_size(image["file_name"]) in (None, (WIDTH, HEIGHT))


def test_a_broken_png_that_detectron2_reads_as_a_black_picture_is_named(record):
    image = record(BAD["broken png"][0])
    assert not read_image(image["file_name"], "RGB").any()
    assert None not in reasons(image)


@pytest.mark.parametrize(
    ("image", "values"),
    [
        (
            Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)),
            "3071",
        ),
        (Image.fromarray(np.full((HEIGHT, WIDTH), 7e4, np.float32)), "70000"),
        (Image.fromarray(np.full((HEIGHT, WIDTH), -3, np.int32)), "-3"),
    ],
    ids=["16 bits", "float", "negative"],
)
def test_values_that_detectron2_would_cut_are_named(record, image, values):
    form = "PNG" if image.mode == "I;16" else "TIFF"
    (reason,) = reasons(record(encoded(image, form)))
    assert values in reason
    assert "Detectron2 cuts" in reason


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_after_detectron2s_turn(record, orientation, form):
    content = encoded(picture(), form, exif=turned(orientation))
    image = record(content)
    height, width = read_image(image["file_name"], "RGB").shape[:2]
    assert image_size(image["file_name"]) == (width, height)
    assert reasons(record(content, width, height)) == {None}
    (reason,) = reasons(record(content, height, width))
    assert f"{width} x {height} pixels" in reason
    assert ("EXIF" in reason) == (width == HEIGHT)


def test_another_size_than_the_dataset_says(record):
    assert reasons(record(GOOD["jpeg"], 2 * WIDTH, 2 * HEIGHT)) == {
        "64 x 48 pixels, but 128 x 96 in the dataset"
    }


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    found = {
        name: unusable_images([{"file_name": str(tmp_path / name)}])[0].reason
        for name in ("fifo", "folder", "loop", "absent", "n" * 300)
    }
    assert found["fifo"] == found["folder"] == "no regular file"
    assert found["absent"] == "does not exist"
    assert found["loop"].startswith("cannot be read: ")
    assert found["n" * 300].startswith("cannot be read: ")


def test_many_images_are_told_in_one_line(tmp_path):
    records = [{"image_id": i, "file_name": str(tmp_path / f"{i}\n.png")} for i in range(30)]
    line = describe_unusable("mine", unusable_images(records), 40)
    assert line.startswith("mine: 30 of 40 images cannot be used: ")
    assert line.count("does not exist") == 10
    assert line.endswith("; ...")
    assert line.isprintable()
    check_share(line, 20, 40)
    with pytest.raises(DatasetError, match="too few are left"):
        check_share(line, 21, 40)
