# SPDX-License-Identifier: Apache-2.0
"""How freed memory is kept for the next batch."""

from __future__ import annotations

import ctypes
import sys

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
