# SPDX-License-Identifier: Apache-2.0
"""Of a folder or a video every image is handed on, or it is told which is not, and why."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from d2defense.data.errors import DatasetError
from d2defense.screening.frame_sources import frames

FRAMES = 40
# Containers and codecs that OpenCV's wheels write. Of the last the number of frames is an estimate.
CODECS = [
    (".avi", "MJPG"), (".avi", "XVID"), (".mp4", "mp4v"), (".mov", "mp4v"), (".m4v", "mp4v"),
    (".mkv", "mp4v"), (".webm", "VP80"), (".mpg", "MPG1"),
]  # fmt: skip


def picture(number: int = 0) -> np.ndarray:
    """Smooth noise, (64, 64, 3), BGR."""
    noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


@pytest.fixture
def film(tmp_path):
    """A function that writes a video of so many frames; skips where OpenCV cannot write it."""

    def write(suffix: str, codec: str, count: int = FRAMES, rate: float = 25):
        path = tmp_path / f"film{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (64, 64))
        if not writer.isOpened():
            pytest.skip(f"OpenCV writes no {codec} in {suffix} here")
        for number in range(count):
            writer.write(picture(number))
        writer.release()
        return path

    return write


def images_and_reasons(path):
    """Names of the frames with pixels, and reasons by name of those without."""
    every = list(frames(path))
    told = [(each.name, each.reason) for each in every if each.pixels is None]
    assert all(reason for _, reason in told)
    return [each.name for each in every if each.pixels is not None], told


@pytest.mark.parametrize(("suffix", "codec"), CODECS)
@pytest.mark.parametrize(("count", "rate"), [(1, 25), (2, 25), (2, 29.97), (FRAMES, 23.976)])
def test_a_whole_video_gives_its_frames_and_nothing_else(film, suffix, codec, count, rate):
    every = list(frames(film(suffix, codec, count, rate)))
    assert [each.number for each in every] == list(range(count))
    assert all(each.pixels is not None for each in every)


@pytest.mark.parametrize(
    ("suffix", "codec"), [each for each in CODECS if each[0] in (".avi", ".mkv", ".webm")]
)
def test_of_a_video_that_is_cut_short_it_is_told_what_is_missing(film, suffix, codec):
    path = film(suffix, codec)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    *read, last = frames(path)
    assert 10 < len(read) < 30
    assert all(each.pixels is not None for each in read)
    assert (last.name, last.number, last.pixels) == (path.name, len(read), None)
    assert last.reason == f"{FRAMES - len(read)} of {FRAMES} frames could not be read"


@pytest.mark.parametrize(("suffix", "codec"), CODECS)
def test_damage_in_the_middle_of_a_video_is_no_end(film, suffix, codec):
    path = film(suffix, codec)
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])
    names, told = images_and_reasons(path)
    assert 0 < len(names) < FRAMES
    assert [reason.partition(" of ")[2].split(" ", 1)[1] for _, reason in told] == [
        "frames could not be read"
    ]


@pytest.mark.parametrize("said", [0.0, -1.0, -9.2e18])
def test_where_the_number_of_frames_is_not_known_the_end_is_the_end(film, monkeypatch, said):
    path = film(".avi", "MJPG")

    class Unclosed:
        def __init__(self, name):
            video = capture(name)
            self.read, self.release = video.read, video.release

        def get(self, key):
            return said

    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Unclosed)
    assert images_and_reasons(path) == ([path.name] * FRAMES, [])


@pytest.fixture
def folder(tmp_path):
    """A folder with one image, and with what is none."""
    folder = tmp_path / "incoming"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(picture()).save(folder / "below" / "a.png")
    others = {
        "notes.txt": b"no image", "classes.json": b"{}", "empty": b"",
        "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(2040),
        ".DS_Store": b"\x00\x00\x00\x01Bud1" + bytes(2040),
        # What Pillow first takes for an image.
        "macros.h": b"#define one */\n", "odd.txt": b"P1 is the first of them",
    }  # fmt: skip
    for name, content in others.items():
        (folder / name).write_bytes(content)
    (folder / "nowhere").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe")
    return folder


A = "below/a.png"


def test_what_is_no_image_is_left_out_without_a_word(folder):
    assert images_and_reasons(folder) == ([A], [])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("b.jfif", "JPEG"), ("b.jpe", "JPEG"), ("b.gif", "GIF"), ("b", "PNG"),
        ("below/b.txt", "PNG"), ("b.png.bak", "TIFF"),
    ],
)  # fmt: skip
def test_an_image_under_another_name_is_told(folder, name, kind):
    Image.fromarray(picture()).save(folder / name, kind)
    reason = f"an image ({kind}) by its content and not by its name"
    assert images_and_reasons(folder) == ([A], [(name, reason)])


def test_so_is_one_that_is_too_large_to_be_opened(folder, monkeypatch):
    Image.fromarray(picture()).save(folder / "b", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "b" in dict(images_and_reasons(folder)[1])


def test_a_link_to_a_folder_is_told(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(picture()).save(elsewhere / "b.png")
    (folder / "below" / "linked").symlink_to(elsewhere, target_is_directory=True)
    reason = "a link to a folder, which is not followed"
    assert images_and_reasons(folder) == ([A], [("below/linked", reason)])


@pytest.mark.parametrize("name", ["pages.tif", "pages.webp", "pages.png"])
def test_of_a_file_of_several_pictures_the_first_is_screened_and_the_others_told(folder, name):
    pages = [Image.fromarray(picture(number)) for number in range(4)]
    pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    reason = "3 of its 4 pictures are not looked at: only the first is"
    assert images_and_reasons(folder) == ([A, name], [(name, reason)])


def test_a_telephones_jpeg_is_one_picture(folder):
    pages = [Image.fromarray(picture(number)) for number in range(2)]
    pages[0].save(folder / "b.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert images_and_reasons(folder) == (["b.jpg", A], [])


def test_a_folder_without_any_image_by_name_is_an_error(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "b.gif")
    with pytest.raises(DatasetError, match="holds no image file"):
        list(frames(tmp_path))
