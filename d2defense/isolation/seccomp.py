# SPDX-License-Identifier: Apache-2.0
"""A filter of system calls: no sockets, no other programs, no other processes.

https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import platform

from .errors import ProtectionError
from .system import prctl

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

# Offsets into struct seccomp_data.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_AF_UNIX = 1
_CLONE_THREAD = 0x00010000
# On x86-64 the same calls have second numbers from here on.
_X32_BIT = 0x40000000

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
# Calls that start programs or processes, reach into other ones, or open large parts of the kernel
# that no scan needs.
_DENIED = {
    "x86_64": {
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "kill": 62,
        "ptrace": 101,
        "pivot_root": 155,
        "mount": 165,
        "umount2": 166,
        "init_module": 175,
        "delete_module": 176,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "finit_module": 313,
        "bpf": 321,
        "execveat": 322,
        "userfaultfd": 323,
        "io_uring_setup": 425,
    },
    "aarch64": {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "ptrace": 117,
        "kill": 129,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "execve": 221,
        "perf_event_open": 241,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "finit_module": 273,
        "bpf": 280,
        "execveat": 281,
        "userfaultfd": 282,
        "io_uring_setup": 425,
    },
}


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def restrict(unix_sockets: bool = False) -> None:
    """Deny this process, for good, sockets, other programs, and processes beside itself.

    Threads can still be started. A denied call fails with "Operation not permitted".

    Args:
        unix_sockets: let sockets of the local machine be made, which GPU drivers use.

    Raises:
        ProtectionError: the kernel refuses, or its calls' numbers are not known.
    """
    machine = platform.machine()
    if machine not in _DENIED:
        raise ProtectionError(0, f"seccomp: calls of {machine} are not known")
    lines = _filter(machine, unix_sockets)
    instructions = (_Instruction * len(lines))(*lines)
    program = _Program(len(lines), instructions)
    prctl("seccomp", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))


def _filter(machine: str, unix_sockets: bool) -> list[tuple[int, int, int, int]]:
    deny, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCHITECTURES[machine]),
        deny,
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        lines += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), deny]
    # The C library falls back from clone3, whose flags a filter cannot see, to clone.
    lines += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number in _DENIED[machine].values():
        lines += [(_JUMP_EQUAL, 0, 1, number), deny]
    lines += [
        (_JUMP_EQUAL, 0, 4, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD),
        allow,
        deny,
    ]
    lines += [(_JUMP_EQUAL, 0, 4, _SOCKET[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_JUMP_EQUAL, 0, 1, _AF_UNIX if unix_sockets else 0xFFFFFFFF), allow, deny]
    return [*lines, allow]
