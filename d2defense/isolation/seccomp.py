# SPDX-License-Identifier: Apache-2.0
"""Letting the kernel refuse every system call but the allowed ones."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from . import bpf
from .calls import NUMBERS, allowed_calls
from .errors import ProtectionError
from .system import syscall

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_ALL_THREADS = 1
#: Names of architectures, as ``uname`` has them, in the order of :data:`NUMBERS`.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# On x86-64 the same calls have second numbers from here on.
_X32_BIT = 0x40000000
# Libraries know what to do without the calls that came last, from clone3 on, whose flags a filter
# cannot see: they fall back to older ones.
_FIRST_RECENT_CALL = 435


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def restrict(gpu: bool = False) -> None:
    """Deny this process, for good, every system call that is not on the list.

    A denied call fails with "Operation not permitted", a recent one with "Function not
    implemented"; a call of another architecture kills the process.

    Args:
        gpu: allow what a GPU's driver needs (:func:`~d2defense.isolation.calls.allowed_calls`).

    Raises:
        ProtectionError: the kernel refuses, or its calls' numbers are not known.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise ProtectionError(0, f"seccomp: calls of {machine} are not known")
    lines = filter_program(machine, os.getpid(), gpu)
    program = _Program(len(lines), (_Instruction * len(lines))(*lines))
    unreached = syscall(
        "seccomp", _SECCOMP[machine], _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)
    )
    if unreached:
        raise ProtectionError(0, f"seccomp: thread {unreached} is beyond reach")


def filter_program(machine: str, own_pid: int, gpu: bool = False) -> list[bpf.Instruction]:
    """The filter of a process, as instructions of :func:`d2defense.isolation.bpf.program`.

    Args:
        machine: one of :data:`ARCHITECTURES`.
        own_pid: of the process.
        gpu: see :func:`restrict`.
    """
    column = list(ARCHITECTURES).index(machine)
    calls = allowed_calls(own_pid, gpu)
    numbered = {NUMBERS[name][column]: cases for name, cases in calls.items()}
    return bpf.program(
        ARCHITECTURES[machine],
        {number: cases for number, cases in numbered.items() if number is not None},
        denied=errno.EPERM,
        unknown=errno.ENOSYS,
        first_unknown=_FIRST_RECENT_CALL,
        foreign_bit=_X32_BIT if machine == "x86_64" else None,
    )
