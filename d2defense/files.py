# SPDX-License-Identifier: Apache-2.0
"""Reads of regular files alone, and whole-file writes: nobody ever sees half a file."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO


def open_readable(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; never waits for a pipe or touches a device.

    Raises:
        OSError: missing, unreadable, or a folder, pipe, socket or device.
        ValueError: a null character in the name.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise OSError(errno.EINVAL, f"it is {what}, not a file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def json_number(value: float) -> float | None:
    """A number for a JSON file: null stands for no data."""
    return float(value) if math.isfinite(value) else None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let the system's errors name ``path``: nobody has asked for the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def open_whole(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write to, which gets the name ``path`` when the body is left without an error.

    Until then it has a temporary name beside it: ``.<name>.<random letters>``. Missing parent
    folders are created.

    Args:
        path: the file, replaced if it exists.
        mode: "wb", or "w" for text in UTF-8.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; it names ``path``. Errors of
            the body are left as they are.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        stream = os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8")
        try:
            yield stream
        except BaseException:
            # The body's error says more than that what it left cannot be written either.
            with suppress(OSError):
                stream.close()
            raise
        with _naming(path):
            stream.close()
            # mkstemp makes files private to their owner; results are meant to be read like any
            # file.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def clear_place(path: str | os.PathLike[str]) -> None:
    """Remove the file ``path`` and find out whether :func:`write_bytes` can write it again.

    Missing parent folders are created, and stay.

    Raises:
        OSError: it cannot be written, or something else than a file is there; it names ``path``.
    """
    path = Path(path)
    with _naming(path):
        # A rename puts a file in the place of a device, if root does it.
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is a folder, a pipe, a socket or a device, not a file")
        write_bytes(path, b"")
        path.unlink()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to a temporary name beside ``path``, then rename it to ``path``.

    Missing parent folders are created.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; it names ``path``.
    """
    path = Path(path)
    with open_whole(path) as stream, _naming(path):
        stream.write(content)
    return path


def write_text(path: str | os.PathLike[str], content: str) -> Path:
    """:func:`write_bytes` for text, as UTF-8."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """:func:`write_bytes` for a JSON document; NaN and infinity are refused (``ValueError``)."""
    return write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
