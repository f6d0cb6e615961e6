# SPDX-License-Identifier: Apache-2.0
"""Landlock: Linux's way for a process without privileges to give up access to files.

https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .system import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_QUERY_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILE_ACCESS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract Unix sockets, signals
# Rights on files that each version of the interface knows: their number.
_KNOWN_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_FIRST_WITH_NETWORK, _FIRST_WITH_SCOPES = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """The version of the interface that the kernel offers.

    Raises:
        ProtectionError: the kernel has none, or it is switched off.
    """
    return syscall("landlock", _CREATE_RULESET, None, 0, _QUERY_VERSION)


def restrict(readable: Iterable[Path], devices: Iterable[Path] = ()) -> int:
    """Forbid this process, for good, all files but the named ones, TCP and signals to others.

    Args:
        readable: files, and folders with everything below them, that can still be read; what does
            not exist is left out.
        devices: files that can also be written to and controlled.

    Returns:
        The version of Landlock in use.

    Raises:
        ProtectionError: the kernel has no Landlock, or refuses.
    """
    supported = version()
    handled = (1 << _KNOWN_RIGHTS[min(supported, max(_KNOWN_RIGHTS))]) - 1
    attributes = _Ruleset(
        handled,
        _TCP if supported >= _FIRST_WITH_NETWORK else 0,
        _SCOPES if supported >= _FIRST_WITH_SCOPES else 0,
    )
    # Older kernels accept longer structures whose unknown rest is zero.
    ruleset = syscall(
        "landlock_create_ruleset",
        _CREATE_RULESET,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
        0,
    )
    try:
        for path in readable:
            _allow(ruleset, path, (_READ_FILE | _READ_DIR) & handled)
        for path in devices:
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _READ_DIR | _IOCTL_DEV) & handled)
        syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return supported


def _allow(ruleset: int, path: Path, access: int) -> None:
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                access &= _FILE_ACCESS
            rule = _PathBeneath(access, descriptor)
            syscall(
                "landlock_add_rule",
                _ADD_RULE,
                ruleset,
                _RULE_PATH_BENEATH,
                ctypes.byref(rule),
                0,
            )
        finally:
            os.close(descriptor)
