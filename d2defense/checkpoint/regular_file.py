# SPDX-License-Identifier: Apache-2.0
"""Opening files that may be anything but files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never waits for a pipe or touches a device.

    Raises:
        CheckpointError: missing, unreadable, or a folder, pipe, socket or device.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise CheckpointError(path, f"cannot be opened: {reason_of(error)}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise CheckpointError(path, f"cannot be opened: it is {what}, not a file")
    return os.fdopen(descriptor, "rb")


def file_bytes(stream: BinaryIO) -> int:
    """Length of an open file."""
    return os.fstat(stream.fileno()).st_size


def reason_of(error: Exception) -> str:
    """What an operating system's or parser's error says, without the path that it repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
