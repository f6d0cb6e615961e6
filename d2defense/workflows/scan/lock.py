# SPDX-License-Identifier: Apache-2.0
"""One run at a time in an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import portalocker

from .options import UsageError


@contextmanager
def output_lock(folder: Path, what: str = "scan") -> Iterator[None]:
    """Keep others out of an output folder, which is created where it is missing.

    The lock belongs to the process and goes with it, however that ends; the file stays.

    Args:
        folder: of the output.
        what: makes it; part of the lock's name, ``.scan.lock``.

    Raises:
        UsageError: another one is at work in it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / f".{what}.lock", "a")  # noqa: SIM115 closed below
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to: {error.strerror}") from None
    with stream:
        try:
            portalocker.lock(stream, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException:
            raise UsageError(f"{folder}: another {what} is writing to this folder") from None
        yield
