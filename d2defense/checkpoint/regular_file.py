# SPDX-License-Identifier: Apache-2.0
"""Opening files that may be anything but files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from d2defense.files import open_readable

from .errors import CheckpointError

#: Larger files are not read: the largest detectors with their optimizers have some 24 GB.
MAX_WEIGHTS_BYTES = 32 << 30


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never waits for a pipe or touches a device.

    Raises:
        CheckpointError: missing, unreadable, or a folder, pipe, socket or device.
    """
    try:
        return open_readable(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be opened: {reason_of(error)}") from None


def file_bytes(stream: BinaryIO) -> int:
    """Length of an open file."""
    return os.fstat(stream.fileno()).st_size


def reason_of(error: Exception) -> str:
    """What an operating system's or parser's error says, without the path that it repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def read_at(stream: BinaryIO, offset: int, length: int) -> bytes:
    """``length`` bytes of a file from ``offset`` on.

    Raises:
        OSError: there are fewer.
    """
    stream.seek(offset)
    content = stream.read(length)
    if len(content) != length:
        raise OSError("it ends too early")
    return content


def read_into(stream: BinaryIO, offset: int, target: memoryview) -> None:
    """Fill ``target`` with the bytes of a file from ``offset`` on.

    A map of the file would do as well, but who shortens a mapped file ends the process that reads.

    Raises:
        OSError: there are fewer.
    """
    stream.seek(offset)
    if stream.readinto(target) != len(target):
        raise OSError("it ends too early")


def identity(stream: BinaryIO) -> tuple[int, ...]:
    """What tells whether an open file is still the one that it was."""
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes.

    Raises:
        CheckpointError: it is no regular file, cannot be read, or is longer than weights can be.
    """
    with open_regular(path) as stream:
        size = file_bytes(stream)
        if size > MAX_WEIGHTS_BYTES:
            raise CheckpointError(path, f"has {size} bytes; at most {MAX_WEIGHTS_BYTES} are read")
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {reason_of(error)}") from None
