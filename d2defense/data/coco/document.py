# SPDX-License-Identifier: Apache-2.0
"""Reading an annotation file, whatever it turns out to be."""

from __future__ import annotations

import gc
import json
import locale
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2defense.data.errors import DatasetError
from d2defense.text import file_size, shorten

SECTIONS = ("images", "annotations", "categories")
# Measured with COCO's own files: the text beside the objects that Python makes of it.
_MEMORY_PER_BYTE = 7


@dataclass(frozen=True)
class CocoDocument:
    """The content of an annotation file.

    Attributes:
        content: the document; the three sections are lists that are not empty.
        is_plain: whether pycocotools, which opens files in the locale's encoding, can read it.
    """

    content: dict[str, Any]
    is_plain: bool


@contextmanager
def without_collector() -> Iterator[None]:
    """Without Python's cyclic garbage collector, which walks millions of new records in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_document(json_file: Path) -> CocoDocument:
    """Read an annotation file and make sure that it has what every COCO-format file has.

    Raises:
        DatasetError: it is missing, no regular file, too large for this machine's memory or not
            JSON; or a section is missing, no list or empty.
    """
    try:
        content = _read_bytes(json_file)
        with without_collector():
            document = json.loads(content)
    except MemoryError:
        raise DatasetError(f"{json_file}: needs more memory than there is") from None
    except RecursionError:
        raise DatasetError(f"{json_file}: not JSON: nested too deeply") from None
    # Among them UnicodeDecodeError, JSONDecodeError and numbers of thousands of digits.
    except ValueError as error:
        raise DatasetError(f"{json_file}: not JSON: {shorten(error, 200)}") from None
    if not isinstance(document, dict):
        raise DatasetError(f"{json_file}: not in COCO's format: the document is no object")
    for section in SECTIONS:
        if not isinstance(document.get(section), list):
            raise DatasetError(f"{json_file}: not in COCO's format: no list {section!r}")
        if not document[section]:
            raise DatasetError(f"{json_file}: {section!r} is empty")
    return CocoDocument(document, _is_plain(content))


def _is_plain(content: bytes) -> bool:
    if json.detect_encoding(content) != "utf-8":
        return False
    encoding = locale.getpreferredencoding(False).replace("-", "").lower()
    return content.isascii() or encoding == "utf8"


def _read_bytes(json_file: Path) -> bytes:
    try:
        if json_file.exists() and not (json_file.is_file() or json_file.is_dir()):
            raise DatasetError(f"{json_file}: cannot be read: not a regular file")
        with open(json_file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if size * _MEMORY_PER_BYTE > memory:
                raise DatasetError(
                    f"{json_file}: {file_size(size)} of annotations need more memory than there is"
                )
            return stream.read()
    except FileNotFoundError as error:
        raise DatasetError(f"{json_file}: annotation file does not exist") from error
    except OSError as error:
        raise DatasetError(f"{json_file}: cannot be read: {error.strerror}") from error
