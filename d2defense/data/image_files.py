# SPDX-License-Identifier: Apache-2.0
"""Whether image files can be read, and are what a dataset says of them."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from d2defense.data.errors import DatasetError
from d2defense.text import shorten

#: Suffixes of what a folder of images is searched for.
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Images that a message names.
NAMED = 10
# Tag of the orientation, and its values that turn an image by a quarter.
_ORIENTATION, _QUARTER_TURNS = 274, (5, 6, 7, 8)
# Modes of more than eight bits, which Pillow's conversion to RGB cuts at 255.
_WIDE_MODES = ("I", "F")
# JPEGs with a second picture for depth or high contrast, as telephones make them: every reader of
# JPEGs shows the first.
_ONE_PICTURE = ("MPO",)
_THREADS = 8
# Fewer are checked before a bar could be seen.
_BAR_FROM = 2000


@dataclass(frozen=True)
class UnusableImage:
    """An image that cannot be used.

    Attributes:
        image_id: of its record.
        file_name: its path.
        reason: why.
    """

    image_id: Any
    file_name: str
    reason: str

    def __str__(self) -> str:
        """The path and the reason, in one line."""
        return f"{shorten(self.file_name, 300)}: {self.reason}"


def images_below(folder: Path, refused: Callable[[OSError], None] | None = None) -> list[Path]:
    """The image files of a folder and of those below it, by their suffixes, sorted.

    Args:
        folder: is searched.
        refused: told of each folder below it that cannot be listed.

    Raises:
        DatasetError: there are none, or it is no folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    found = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=refused)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise DatasetError(f"{folder}: holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def passed_over(folder: Path) -> Iterator[tuple[Path, str]]:
    """What :func:`images_below` leaves out without a word though images may be in it, and why.

    These are links to folders, and files that Pillow takes for images, whatever their names say, or
    that cannot be opened to ask it. Other files are left out here, too.
    """
    Image.init()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                yield Path(parent, name), "a link to a folder, which is not followed"
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() not in IMAGE_SUFFIXES and (reason := _hidden_image(path)):
                yield path, reason


def further_pictures(path: Path) -> int:
    """How many pictures a file, which can be read, holds beside the one that Detectron2 reads."""
    with _quiet(), open(path, "rb") as stream, Image.open(stream) as image:
        return 0 if image.format in _ONE_PICTURE else getattr(image, "n_frames", 1) - 1


def unusable_images(records: Sequence[dict[str, Any]], decode: bool = True) -> list[UnusableImage]:
    """The images that Detectron2 could not read, or would read as something else.

    Args:
        records: Detectron2's standard dataset dicts. A ``width`` and ``height`` must be those of
            the file, turned as its EXIF orientation says, as Detectron2 turns it.
        decode: decode every image. Else only headers are read and whether a file ends as its
            format ends; what ends otherwise, and formats other than JPEG and PNG, are decoded.
    """
    Image.init()
    silent = None if len(records) >= _BAR_FROM else True
    with _quiet(), ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda record: _reason(record, decode), records)
        bar = tqdm(reasons, "images", len(records), disable=silent, unit="image", leave=False)
        return [
            UnusableImage(record.get("image_id"), record["file_name"], reason)
            for record, reason in zip(records, bar, strict=True)
            if reason
        ]


def describe_unusable(name: str, unusable: Sequence[UnusableImage], total: int) -> str:
    """One line: how many of a dataset's images cannot be used, and which."""
    named = "; ".join(map(str, unusable[:NAMED]))
    more = "; ..." if len(unusable) > NAMED else ""
    return f"{name}: {len(unusable)} of {total} images cannot be used: {named}{more}"


def check_share(line: str, unusable: int, total: int) -> None:
    """Make sure that enough images are left without those that cannot be used.

    Args:
        line: what :func:`describe_unusable` says of them.
        unusable: their number.
        total: number of images with them.

    Raises:
        DatasetError: more than half would have to be left out.
    """
    if unusable > total / 2:
        raise DatasetError(f"{line}; too few are left")


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(width, height) of an image as Detectron2 reads it; None if it cannot be read."""
    try:
        with _quiet(), open(path, "rb") as stream, Image.open(stream) as image:
            if image.format == "PNG":
                image.load()
            return _turned_size(image, decoded=True)
    except Exception:  # Pillow's readers raise whatever a broken file leads them to
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Of large images and odd metadata, which Detectron2 reads nevertheless.
        warnings.simplefilter("ignore")
        yield


def _hidden_image(path: Path) -> str | None:
    """Why a file that is not named like an image may be one; None if it is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with _quiet(), open(path, "rb") as stream:
            try:
                with Image.open(stream) as image:
                    kind = image.format
            except Image.DecompressionBombError:
                kind = "too large a one"
            except Exception:  # Pillow's readers raise whatever a file that is no image leads to
                return None
    except FileNotFoundError:
        return None  # a link that leads nowhere
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return f"an image ({kind}) by its content and not by its name"


def _reason(record: dict[str, Any], decode: bool) -> str | None:
    """Why an image cannot be used; None if it can."""
    path = record["file_name"]
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        if not status.st_size:
            return "empty file"
        with open(path, "rb") as stream:
            return _reason_in(stream, record, decode)
    except FileNotFoundError:
        return "does not exist"
    except UnidentifiedImageError:
        return "no image of a known format"
    except MemoryError:
        return "needs more memory than there is"
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"cannot be read: {shorten(words, 120)}"


def _reason_in(stream: BinaryIO, record: dict[str, Any], decode: bool) -> str | None:
    with Image.open(stream) as image:
        if image.mode.startswith(_WIDE_MODES):
            low, high = image.getextrema()
            if low < 0 or high > 255:
                return f"values from {low:g} to {high:g}, which Detectron2 cuts at 0 and 255"
        stored = image.size
        decoded = decode or not _seems_whole(image, stream)
        if decoded:
            # Not by Detectron2's read_image: it swallows the error of a broken PNG, whose metadata
            # it asks for first, and hands back a picture that is black from there on.
            image.convert("RGB")
        size = _turned_size(image, decoded)
    expected = (record.get("width", size[0]), record.get("height", size[1]))
    if size == expected:
        return None
    turned = ", turned as its EXIF orientation says" if size != stored else ""
    return f"{size[0]} x {size[1]} pixels{turned}, but {expected[0]} x {expected[1]} in the dataset"


def _seems_whole(image: Image.Image, stream: BinaryIO) -> bool:
    """Whether a file ends as its format ends; False where that is not known."""
    if image.format == "JPEG":
        position = stream.tell()
        stream.seek(-2, os.SEEK_END)
        ends = stream.read() == b"\xff\xd9"
        stream.seek(position)
        return ends
    if image.format == "PNG":
        stream.seek(0)
        content = stream.read()
        if b"eXIf" in content or b"Raw profile type" in content:
            return False
        try:
            # Reads every chunk and its checksum, decodes nothing.
            with Image.open(io.BytesIO(content)) as copy:
                copy.verify()
        except Exception:  # Pillow's readers raise whatever a broken file leads them to
            return False
        stream.seek(0)
        return True
    return False


def _turned_size(image: Image.Image, decoded: bool) -> tuple[int, int]:
    """(width, height) after the turn that Detectron2 makes for the EXIF orientation."""
    orientation = None
    # Pillow decodes a PNG for metadata behind its pixels; what _seems_whole accepts has none.
    if decoded or image.format != "PNG" or "exif" in image.info:
        with suppress(Exception):  # as Detectron2 does
            orientation = image.getexif().get(_ORIENTATION)
    width, height = image.size
    return (height, width) if orientation in _QUARTER_TURNS else (width, height)
