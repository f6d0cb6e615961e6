# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls, for both architectures, run by a machine of the test's own."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from d2defense.isolation.calls import NUMBERS, allowed_calls
from d2defense.isolation.seccomp import ARCHITECTURES, filter_program

ALLOWED, KILLED = "allowed", "killed"
OWN_PID = 4321
X86_64, ARM64 = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
#: Calls that have other names in the header of ARM64.
RENAMED = {"newfstatat": "fstatat"}


def decide(
    machine: str, name: str | int, *arguments: int, architecture: int | None = None, **options
) -> str | int:
    """What the filter does with a call: allow, kill, or an error number."""
    column = list(ARCHITECTURES).index(machine)
    number = NUMBERS[name][column] if isinstance(name, str) else name
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = b"".join(
        value.to_bytes(size, "little")
        for value, size in [
            (number, 4),
            (ARCHITECTURES[machine] if architecture is None else architecture, 4),
            (0, 8),
            *((value % 2**64, 8) for value in padded),
        ]
    )
    program = filter_program(machine, OWN_PID, **options)
    assert len(program) <= 4096  # the kernel's limit
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif code == 0x54:
            accumulator &= value
        elif code in (0x15, 0x35):
            holds = accumulator == value if code == 0x15 else accumulator >= value
            at += if_true if holds else if_false
        else:
            assert code == 0x06
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(value, value & 0xFFFF)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "allowed", "denied"),
    [
        ("kill", [(OWN_PID, 6)], [(1, 9), (-1, 9), (0, 9), (-OWN_PID, 9)]),
        ("tgkill", [(OWN_PID, 7, 6)], [(1, 1, 9), (0, OWN_PID, 9), (-1, OWN_PID, 9)]),
        (
            "prlimit64",
            [(0, 0, 0, 99), (OWN_PID, 7, 0, 99)],
            [(0, 0, 99), (1, 0, 0), (1, 0, 99), (0, 0, 1 << 32)],
        ),
        ("sched_setaffinity", [(0, 8, 99), (OWN_PID, 8, 99)], [(1, 8, 99), (-1, 8, 99)]),
        # As the C library makes a thread; a process; a thread in each kind of namespace.
        (
            "clone",
            [(0x3D0F00,), (0x7D0F00,)],
            [
                *((0x11,), (0x1200011,), (0x4111,)),
                *((0x3D0F00 | flag,) for flag in (0x20000, 1 << 25, 1 << 26, 1 << 27)),
                *((0x3D0F00 | flag,) for flag in (1 << 28, 1 << 29, 1 << 30, 1 << 31, 0x80)),
            ],
        ),
        ("openat", [(0, 0, 0o2000000)], [(0, 0, 1), (0, 0, 2), (0, 0, 0o100), (0, 0, 0o1000)]),
        # F_SETLK, F_SETLKW, F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_OFD_SETLK
        (
            "fcntl",
            [(3, 1), (3, 1030), (3, 4, 0o4000)],
            [(3, command) for command in (6, 7, 8, 10, 15, 1024, 1026, 37)] + [(3, 4, 0o20000)],
        ),
        # TIOCSTI, TIOCSCTTY, FIOASYNC, TIOCLINUX; NVIDIA's
        (
            "ioctl",
            [(0, 0x5401), (0, 0x5413)],
            [(0, r) for r in (0x5412, 0x540E, 0x5452, 0x541C, 0xC020462A, 0x1B)],
        ),
        ("prctl", [(15, 99)], [(1, 9), (4, 1), (0x59616D61, 1), (22, 2), (38, 1)]),
        ("mmap", [(0, 4096, 3, 0x22)], [(0, 4096, 3, 0x40022)]),
        ("sendto", [(3, 99, 1, 0, 0, 0)], [(3, 99, 1, 0, 99, 16), (3, 99, 1, 0, 1 << 32, 16)]),
        ("socket", [], [(1, 1), (2, 1), (10, 1), (16, 3), (40, 1)]),
        ("memfd_create", [], [()]),
    ],
)
def test_arguments_decide(machine, name, allowed, denied):
    assert [decide(machine, name, *case) for case in allowed] == [ALLOWED] * len(allowed)
    assert [decide(machine, name, *case) for case in denied] == [errno.EPERM] * len(denied)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_gpu_needs_its_requests_and_sockets_that_reach_nobody(machine):
    requests = [(0, 0xC020462A), (0, 0x1B), (0, 0x30000001)]
    assert [decide(machine, "ioctl", *case, gpu=True) for case in requests] == [ALLOWED] * 3
    assert decide(machine, "ioctl", 0, 0x5412, gpu=True) == errno.EPERM
    assert decide(machine, "openat", 0, 0, 2, gpu=True) == ALLOWED
    assert decide(machine, "socket", 1, 5, gpu=True) == ALLOWED
    assert decide(machine, "socket", 2, 1, gpu=True) == errno.EPERM
    assert "connect" not in allowed_calls(OWN_PID, gpu=True)


def test_other_architectures_and_conventions_are_refused():
    assert decide("x86_64", "read", architecture=0x40000003) == KILLED  # 32 bits
    assert decide("x86_64", "read", architecture=ARM64) == KILLED
    assert decide("aarch64", "read", architecture=X86_64) == KILLED
    assert decide("x86_64", 0x40000000) == KILLED  # read of x32
    assert decide("x86_64", 0xFFFFFFFF) == KILLED


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_recent_calls_are_not_there(machine):
    """clone3, openat2, pidfd_getfd, process_madvise, memfd_secret, and numbers yet to come."""
    for number in (435, 437, 438, 440, 447, 600):
        assert decide(machine, number) == errno.ENOSYS


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_is_not_on_the_list_is_denied(machine):
    column = list(ARCHITECTURES).index(machine)
    listed = {NUMBERS[name][column] for name in allowed_calls(OWN_PID)}
    denied = {n for n in range(435) if decide(machine, n) == errno.EPERM}
    assert denied >= set(range(435)) - listed
    assert len(denied) > 300


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_are_those_of_the_kernels_headers(machine):
    header = next((Path(p) for p in HEADERS[machine] if Path(p).is_file()), None)
    if header is None:
        pytest.skip(f"no header of {machine} here")
    text = header.read_text()
    pattern = r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)"
    numbers = {name: int(number) for name, number in re.findall(pattern, text)}
    column = list(ARCHITECTURES).index(machine)
    for name, both in NUMBERS.items():
        if machine == "aarch64":
            name = RENAMED.get(name, name)
        assert numbers.get(name) == both[column], name
