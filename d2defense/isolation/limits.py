# SPDX-License-Identifier: Apache-2.0
"""How much memory and time a confined process may take."""

from __future__ import annotations

import re
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)
# What counts against the limit: memory of the process's own, also where it was swapped out. Pages
# of files (libraries, mapped weights) can be dropped and do not count.
_OWN_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:", "HugetlbPages:")
#: Threads that one confined process may have: far more than cores, far fewer than a system has room
#: for.
MAX_THREADS = 4096
_MAX_OPEN_FILES = 4096


@dataclass(frozen=True)
class Limits:
    """What one confined process may take.

    Attributes:
        memory_bytes: memory of its own, None for no limit.
        seconds: wall time, None for no limit.

    Raises:
        ValueError: a limit that is not positive.
    """

    memory_bytes: int | None = 8 << 30
    seconds: float | None = 3600.0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value} is not positive")


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8G``, ``512M`` or ``1.5GiB``; units are powers of 1024.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size such as 8G or 512M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_size(size: int) -> str:
    """A size in the largest unit that it is at least one of: ``8 GiB``, ``1.5 MiB``."""
    for unit, factor in reversed(_UNITS.items()):
        if size >= factor and unit:
            return f"{round(size / factor, 1):g} {unit}iB"
    return f"{size} bytes"


@dataclass(frozen=True)
class Usage:
    """What a process takes.

    Attributes:
        memory_bytes: memory that belongs to it alone.
        threads: how many it has.
    """

    memory_bytes: int = 0
    threads: int = 0


def usage(pid: int) -> Usage:
    """What a process takes; nothing where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        memory = sum(int(line.split()[1]) for line in lines if line.startswith(_OWN_MEMORY))
        threads = sum(int(line.split()[1]) for line in lines if line.startswith("Threads:"))
        return Usage(1024 * memory, threads)
    return Usage()


def limit_resources(memory_bytes: int | None, gpu: bool = False) -> None:
    """Let this process's allocations beyond ``memory_bytes`` fail, and have it leave no files.

    Not the address space but the data segment is limited, which since Linux 4.7 counts every
    private writable page: torch and CUDA reserve addresses far beyond what they use.

    Args:
        memory_bytes: None for no limit.
        gpu: leave out what a GPU's driver needs: it maps more than it uses, keeps pages in memory,
            and writes to files in memory.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    for name in ("RLIMIT_MSGQUEUE", "RLIMIT_RTPRIO", "RLIMIT_NICE"):
        if hasattr(resource, name):
            _lower(getattr(resource, name), 0)
    if not gpu:
        _lower(resource.RLIMIT_FSIZE, 0)
        _lower(resource.RLIMIT_MEMLOCK, 0)
        if memory_bytes is not None:
            _lower(resource.RLIMIT_DATA, memory_bytes)


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (allowed, allowed))
