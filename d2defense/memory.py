# SPDX-License-Identifier: Apache-2.0
"""How much memory there is, when it has run out, and how freed memory is kept."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that the C library accepts on 64-bit systems.
_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed instead of giving it back to the system at once.

    Each batch frees the feature maps of the one before. Given back, their pages must be zeroed by
    the kernel when the next batch asks for them, which on a CPU takes a good part of a small
    network's time. For processes that do one job and end; what they hold at most is the same.

    Returns:
        whether the C library is one that can be told so (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = [
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD),
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1),
    ]
    return all(told)


# What PyTorch's and CUDA's allocators say; they raise a plain RuntimeError or a subclass of it.
# The last is what oneDNN says when it gets no memory for its own buffers.
_OUT_OF_MEMORY = (
    "allocate memory",
    "out of memory",
    "not enough memory",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)


def available_bytes(device: torch.device | str) -> int:
    """Memory that this process may still take.

    On the CPU the least of what the machine has left, of what the process's control group has,
    and of what its own limit leaves (that of a confined process); on a GPU what is free on it,
    with what PyTorch holds unused.

    Args:
        device: of the model.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = [_machine_bytes(), _group_bytes(), _own_limit_bytes()]
    return max(0, min(value for value in left if value is not None))


def _machine_bytes() -> int:
    with suppress(OSError, ValueError):
        return _field(Path("/proc/meminfo"), "MemAvailable:")
    # Where the system does not tell what it could free, half of what it has.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _group_bytes() -> int | None:
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            return int(limit) - int((folder / "memory.current").read_text())
    return None


def _own_limit_bytes() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        used = _field(Path("/proc/self/status"), "VmData:")
    except (OSError, ValueError):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return limit - used


def _field(path: Path, name: str) -> int:
    """Bytes of a line such as ``MemAvailable: 123 kB``."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{path} does not say {name}")
