# SPDX-License-Identifier: Apache-2.0
"""Everything that a process gives up before it opens a file that a stranger made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import landlock, seccomp
from .errors import ProtectionError
from .limits import Limits, limit_resources
from .namespaces import ALL, NETWORK, PROCESSES, Namespaces, enter_others
from .system import die_with_parent, drop_capabilities, forbid_new_privileges, is_linux

# What libraries read on their own while they run.
_SYSTEM_PATHS = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/vm/mmap_min_addr"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
    "/sys/kernel/mm/transparent_hugepage",
)
_GPU_PATHS = (
    *("/proc/driver", "/proc/devices", "/proc/modules", "/proc/filesystems"),
    *("/sys/devices", "/sys/bus/pci", "/sys/class", "/sys/module", "/etc/nvidia"),
)
# The driver gives its threads names through files here.
_GPU_WRITABLE = ("/dev/null", "/proc/self")


def confine(
    readable: Iterable[Path],
    limits: Limits,
    gpu: bool = False,
    namespaces: Namespaces | None = None,
) -> dict[str, Any]:
    """Take from this process, which must have one thread, what a scan does not need.

    Each means of protection is used where the system has it; where it does not, the others hold.

    Args:
        readable: files, and folders with what is below them, that stay readable beside the
            interpreter's and the system's own.
        limits: of memory and time. Of time only the record is made here; who forked the process
            keeps it, and the limit of memory too.
        gpu: leave what a GPU's driver needs.
        namespaces: those that this process has of its own; it is given the others.

    Returns:
        What ``environment.isolation`` in a result records: ``mode``; ``memory_limit_bytes`` and
        ``time_limit_seconds``, None for none; ``network``, ``files``, ``processes`` and
        ``system_calls``, by what they are restricted, None if by nothing; ``namespaces``, those of
        its own; ``gpu``; ``missing``, one line for each means that this system does not offer.
    """
    namespaces = namespaces or Namespaces()
    missing: list[str] = []

    def attempt(protect: Callable[[], Any]) -> tuple[bool, Any]:
        try:
            return True, protect()
        except ProtectionError as error:
            missing.append(error.strerror or str(error))
        except (OSError, ValueError) as error:
            missing.append(str(error))
        return False, None

    attempt(lambda: limit_resources(limits.memory_bytes, gpu))
    record: dict[str, Any] = {
        "mode": "process",
        "memory_limit_bytes": limits.memory_bytes,
        "time_limit_seconds": limits.seconds,
        "network": None,
        "files": None,
        "processes": None,
        "system_calls": None,
        "namespaces": [],
        "gpu": gpu,
        "missing": missing,
    }
    if not is_linux():
        missing.append(f"only Linux restricts network and files, not {sys.platform}")
        return record
    _offer_to_oom_killer()
    enter_others(namespaces)
    record["namespaces"] = [name for name in ALL if name in namespaces.active]
    missing += namespaces.missing()
    attempt(forbid_new_privileges)
    attempt(drop_capabilities)
    # After all that changes this process's rights: with those the kernel forgets it.
    attempt(die_with_parent)
    allowed = [*readable, *_interpreter_paths(), *map(Path, _SYSTEM_PATHS)]
    devices = [*_device_paths()] if gpu else []
    if gpu:
        allowed += map(Path, _GPU_PATHS)
    restricted, version = attempt(lambda: landlock.restrict(allowed, devices))
    filtered, _ = attempt(lambda: seccomp.restrict(gpu))
    record["files"] = f"landlock {version}" if restricted else None
    record["system_calls"] = "seccomp" if filtered else None
    for kind, namespace in (("network", NETWORK), ("processes", PROCESSES)):
        means = [("namespace", namespace in namespaces.active), ("seccomp", filtered)]
        record[kind] = next((name for name, active in means if active), None)
    return record


def _offer_to_oom_killer() -> None:
    """Where the whole machine runs out of memory, this process goes first."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _interpreter_paths() -> list[Path]:
    """Folders of the interpreter and of every package that is loaded from elsewhere."""
    prefixes = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    paths = set(prefixes)
    for name, module in list(sys.modules.items()):
        location = getattr(module, "__file__", None)
        if "." in name or not isinstance(location, str):
            continue
        path = Path(location).resolve()
        if not any(path.is_relative_to(prefix) for prefix in prefixes):
            paths.add(path.parent if path.stem == "__init__" else path)
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return sorted(paths) + [Path(folder) for folder in libraries if folder]


def _device_paths() -> list[Path]:
    return [*map(Path, _GPU_WRITABLE), *sorted(Path("/dev").glob("nvidia*"))]
