# SPDX-License-Identifier: Apache-2.0
"""Calls into Linux that Python's standard library does not offer."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys

from .errors import ProtectionError

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
# A scan that root runs may meet files of others that only root reads.
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def is_linux() -> bool:
    """Whether the calls of this module exist."""
    return sys.platform.startswith("linux")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise ProtectionError(code, f"{what}: {os.strerror(code)}")
    return result


def libc_call(name: str, *arguments: object) -> int:
    """A function of the C library that returns -1 when the kernel refuses.

    Raises:
        ProtectionError: it does.
    """
    return _check(getattr(_libc(), name)(*arguments), name)


def syscall(what: str, number: int, *arguments: object) -> int:
    """A raw system call; integers are passed as unsigned longs, the rest as it is.

    Raises:
        ProtectionError: the kernel refuses; ``what`` names the call in the message.
    """
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    return _check(libc.syscall(ctypes.c_long(number), *passed), what)


def prctl(what: str, option: int, *arguments: object) -> None:
    """``prctl(2)`` with missing arguments as 0.

    Raises:
        ProtectionError: the kernel refuses.
    """
    filled = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    filled += [ctypes.c_ulong(0)] * (4 - len(filled))
    _check(_libc().prctl(ctypes.c_int(option), *filled), what)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends.

    Raises:
        ProtectionError: the kernel refuses.
    """
    prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, int(signal.SIGKILL))


def forbid_new_privileges() -> None:
    """No program that this process may start gains rights, as set-user-id programs do.

    Raises:
        ProtectionError: the kernel refuses.
    """
    prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability but root's to read files of other users.

    Raises:
        ProtectionError: the kernel refuses, or its call's number is not known.
    """
    number = _CAPSET.get(platform.machine())
    if number is None:
        raise ProtectionError(0, f"capset: not known on {platform.machine()}")
    with open("/proc/self/status") as stream:
        permitted = next(int(line.split()[1], 16) for line in stream if line.startswith("CapPrm:"))
    # Others have capabilities only in a user namespace of their own.
    readers = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH if os.geteuid() == 0 else 0
    kept = permitted & readers
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    # effective, permitted, inheritable; twice for 64 capabilities
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    syscall("capset", number, ctypes.byref(header), ctypes.byref(data))
