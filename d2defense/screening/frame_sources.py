# SPDX-License-Identifier: Apache-2.0
"""Images of a folder, or of a video, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image

from d2defense.data.image_files import (
    further_pictures,
    images_below,
    passed_over,
    unusable_images,
)
from d2defense.text import shorten

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})

# Where a container names no number of frames, OpenCV makes one of duration and rate: up to one too
# high by rounding, and one more where sound ends after the picture. Which it was it does not tell.
_MISCOUNTED = 2


class FramesError(ValueError):
    """There are no images; the message names the path and the reason."""


@dataclass(frozen=True)
class Frame:
    """One image, or why there is none.

    Attributes:
        name: of the file, relative to the folder; of a video, its name.
        number: of the frame in a video, from 0 on; None in a folder.
        pixels: uint8 array (H, W, 3), BGR; None if it cannot be read.
        reason: why it cannot be read, one line.
    """

    name: str
    number: int | None
    pixels: np.ndarray | None
    reason: str = ""


def frames(path: Path) -> Iterator[Frame]:
    """The images of a folder or the frames of a video, read when they are asked for.

    What is found and cannot be read, or is not looked at, is a frame without pixels: images under
    other names, links to folders, all but the first picture of a file, the rest of a video.

    Raises:
        DatasetError: there are none in a folder.
        FramesError: it is neither, or no frame of a video can be read.
    """
    if path.is_dir():
        refused: list[OSError] = []
        for file in images_below(path, refused.append):
            yield from _read(file, str(file.relative_to(path)))
        for file, reason in passed_over(path):
            yield Frame(str(file.relative_to(path)), None, None, reason)
        for error in refused:
            name = str(Path(error.filename).relative_to(path))
            yield Frame(name, None, None, f"cannot be listed: {error.strerror}")
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _video(path)
    else:
        kinds = ", ".join(sorted(VIDEO_SUFFIXES))
        raise FramesError(f"{path}: neither a folder of images nor a video ({kinds})")


def _read(file: Path, name: str) -> Iterator[Frame]:
    """An image as Detectron2 reads it, turned as its EXIF orientation says, and what it leaves."""
    unusable = unusable_images([{"file_name": str(file)}])
    if unusable:
        yield Frame(name, None, None, unusable[0].reason)
        return
    try:
        # A copy: the array is a view with negative strides.
        pixels = np.ascontiguousarray(read_image(str(file), "BGR"))
        further = further_pictures(file)
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        yield Frame(name, None, None, f"cannot be read: {shorten(str(error), 120)}")
        return
    yield Frame(name, None, pixels)
    if further:
        reason = f"{further} of its {further + 1} pictures are not looked at: only the first is"
        yield Frame(name, None, None, reason)


def _video(path: Path) -> Iterator[Frame]:
    import cv2

    if not path.is_file():
        raise FramesError(f"{path}: no such file")
    video = cv2.VideoCapture(str(path))
    # 0 or less where it is not known, as of a recording that was never closed.
    said = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    number = 0
    try:
        while True:
            is_there, pixels = video.read()
            if not is_there:
                break
            yield Frame(path.name, number, pixels)
            number += 1
    finally:
        video.release()
    if not number:
        raise FramesError(f"{path}: no frame of it can be read: no video that OpenCV knows here")
    # A read fails at the end and at damage alike.
    if said > number + _MISCOUNTED:
        reason = f"{said - number} of {said} frames could not be read"
        yield Frame(path.name, number, None, reason)


class CleanArrays(Sequence[np.ndarray]):
    """Clean images, read when they are asked for; those that cannot be read are left out.

    Args:
        files: of the images.

    Attributes:
        left_out: one line each: what cannot be read, and why.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        unusable = unusable_images([{"file_name": str(file)} for file in files])
        self.left_out = [str(each) for each in unusable]
        names = {each.file_name for each in unusable}
        self._files = [file for file in files if str(file) not in names]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> np.ndarray:
        """One of them, uint8 (H, W, 3), BGR."""
        return np.ascontiguousarray(read_image(str(self._files[index]), "BGR"))
