# SPDX-License-Identifier: Apache-2.0
"""The folder that generated data is kept in, and a way to fill one of its folders only once."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import portalocker

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "D2DEFENSE_CACHE"


def cache_dir() -> Path:
    """The cache folder: ``$D2DEFENSE_CACHE``, else ``d2defense`` in the user's cache directory."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "d2defense"


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def fill_once(
    folder: Path, is_complete: Callable[[Path], bool], fill: Callable[[Path], None]
) -> bool:
    """Create ``folder`` with ``fill`` unless a complete one is there.

    ``fill`` writes into a temporary sibling, which is renamed to ``folder`` when it returns, so
    that ``folder`` is whole whenever it exists. A process that comes second waits for the first;
    the lock belongs to the process and goes with it, and what a killed process left is removed.

    Args:
        folder: the folder to create.
        is_complete: whether a folder can be used as it is.
        fill: writes the contents into the folder it is given.

    Returns:
        Whether ``fill`` was called.

    Raises:
        OSError: the parent folder cannot be written to.
    """
    if is_complete(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "a") as lock:
        try:
            portalocker.lock(lock, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException:
            logger.info("Waiting for another process that is writing %s", folder)
            portalocker.lock(lock, portalocker.LOCK_EX)
        if is_complete(folder):
            return False
        _remove_leftovers(folder)
        partial = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
        )
        try:
            fill(partial)
            # mkdtemp makes folders private to their owner; a cache may be shared.
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o777 & ~umask)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return True
