# SPDX-License-Identifier: Apache-2.0
"""Pictures of triggers: what is read, and how it is scaled."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import torch

from d2defense.triggers.pictures import decode_picture, scale_picture

PICTURE = torch.from_numpy(np.random.default_rng(0).random((3, 13, 19)))


def by_pillow(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    scaled = PIL.Image.fromarray(picture.astype(np.float32)).resize((width, height), 2)
    return np.array(scaled)


def saved(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("height", [1, 2, 12, 13, 40])
@pytest.mark.parametrize("width", [1, 3, 19, 20, 57])
def test_scaling_is_what_pillow_calls_bilinear(height, width):
    scaled = scale_picture(PICTURE, (width, height))
    expected = [by_pillow(channel.numpy(), width, height) for channel in PICTURE]
    assert np.abs(scaled.numpy() - expected).max() < 1e-5


def test_a_window_is_a_part_of_the_whole():
    whole = scale_picture(PICTURE, (50, 9))
    part = scale_picture(PICTURE, (50, 9), (20, 3, 41, 4))
    torch.testing.assert_close(part, whole[:, 3:4, 20:41], rtol=1e-12, atol=0)
    # However large the whole would be.
    corner = scale_picture(PICTURE, (10**12, 10**12), (0, 0, 2, 3))
    assert torch.allclose(corner, PICTURE[:, :1, :1].expand(3, 3, 2))


def test_a_picture_is_read_as_red_green_blue_without_its_transparency():
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    read = decode_picture(saved(pixels, "PNG"))
    assert read.dtype == torch.float32
    assert np.array_equal(read.permute(1, 2, 0).numpy(), pixels[..., :3])
    gray = decode_picture(saved(pixels[..., 0], "BMP"))
    assert np.array_equal(gray.numpy(), np.stack([pixels[..., 0]] * 3))


def test_transparency_is_read_where_it_is_wanted():
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    read = decode_picture(saved(pixels, "PNG"), "RGBA")
    assert np.array_equal(read.permute(1, 2, 0).numpy(), pixels)
    opaque = decode_picture(saved(pixels[..., :3], "PNG"), "RGBA")
    assert opaque.shape == (4, 5, 7) and (opaque[3] == 255).all()


def test_a_picture_of_more_pixels_than_a_trigger_needs_is_refused():
    assert decode_picture(saved(np.zeros((1, 4097), dtype=bool), "PNG")).shape == (3, 1, 4097)
    with pytest.raises(ValueError, match=r"^not an image: 4097 x 4096 pixels are too many$"):
        decode_picture(saved(np.zeros((4096, 4097), dtype=bool), "PNG"))


@pytest.mark.parametrize("kind", ["EPS", "PDF", None])
def test_what_is_no_plain_image_is_refused(kind):
    content = saved(np.zeros((4, 4, 3), dtype=np.uint8), kind) if kind else b"GIF89a"
    with pytest.raises(ValueError, match=r"^not an image: "):
        decode_picture(content)
