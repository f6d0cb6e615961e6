# SPDX-License-Identifier: Apache-2.0
"""Namespaces: a process that sees no other processes, no network, and files that cannot be changed.

A process gets its own ones in two steps. The server enters a user namespace and one for processes
once, before it imports anything; then each confined process, forked from it, gets further ones.
Root needs no user namespace, but in one its rights end at what the namespace owns.

https://man7.org/linux/man-pages/man7/namespaces.7.html
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ProtectionError
from .system import die_with_parent, libc_call, syscall

# Flags of clone(2).
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
USER, PROCESSES, NETWORK, IPC, MOUNTS, UTS = "user", "pid", "network", "ipc", "mount", "uts"
#: What a confined process has of its own, at best.
ALL = (USER, PROCESSES, NETWORK, IPC, MOUNTS, UTS)

# <sys/mount.h>
_READ_ONLY, _NO_SET_USER_ID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_RECURSIVE, _PRIVATE = 0x4000, 1 << 18
_MOUNT_SETATTR = 442  # the same on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000


@dataclass
class Namespaces:
    """Which namespaces a process has of its own.

    Attributes:
        active: their names, of :data:`ALL`.
        refused: by name, why the system gives others not.
    """

    active: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_alone(self) -> bool:
        """Whether it sees no processes of others, and is the first of its own."""
        return PROCESSES in self.active

    def attempt(self, name: str, action: Callable[[], None]) -> bool:
        """Enter one, or note why not; whether it was entered."""
        try:
            action()
        except OSError as error:
            self.refused[name] = error.strerror or str(error)
            return False
        self.active.append(name)
        return True

    def missing(self) -> list[str]:
        """One line for each reason, with the namespaces that it keeps from being entered."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.refused.items():
            reasons.setdefault(reason, []).append(name)
        return [f"namespaces ({', '.join(names)}): {reason}" for reason, names in reasons.items()]


def enter(close_here: Callable[[], None]) -> Namespaces:
    """Move the caller, which must have one thread, into a user namespace and one for processes.

    For the latter another process is needed: this returns in it, and the one that called waits for
    it, with what ``close_here`` closes closed, and ends as it does. Where the system gives none of
    them, this returns in the caller.

    Args:
        close_here: closes what the waiting process should not keep open.
    """
    possible = _try_out()
    entered = Namespaces(refused=possible.refused)
    if USER in possible.active:
        entered.attempt(USER, _enter_user)
    if PROCESSES in possible.active and entered.attempt(PROCESSES, _unshare_processes):
        pid = os.fork()
        if pid:
            close_here()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
        die_with_parent()
        _detach_mounts()
        _mount_processes()
    return entered


class ProcessNamespaces:
    """Gives each process that the server forks a namespace for processes of its own.

    Args:
        server: what the server itself has (:func:`enter`).
    """

    def __init__(self, server: Namespaces) -> None:
        self._server = server
        self._own: int | None = None
        if PROCESSES in server.active:
            self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> tuple[int, Namespaces]:
        """``os.fork()``, and what the child then has of its own.

        Raises:
            OSError: it cannot be forked, or the server cannot come back from the namespace.
        """
        active, refused = list(self._server.active), dict(self._server.refused)
        if self._own is None:
            return os.fork(), Namespaces(active, refused)
        try:
            _unshare(_NEW_PROCESSES)
        except OSError as error:
            active.remove(PROCESSES)
            refused[PROCESSES] = error.strerror
            return os.fork(), Namespaces(active, refused)
        try:
            pid = os.fork()
        except OSError:
            self._come_back()
            raise
        if pid:
            self._come_back()
        return pid, Namespaces(active, refused)

    def _come_back(self) -> None:
        libc_call("setns", ctypes.c_int(self._own), ctypes.c_int(_NEW_PROCESSES))


def enter_others(namespaces: Namespaces) -> None:
    """Give this process, forked by :meth:`ProcessNamespaces.fork`, all other namespaces.

    In its mount namespace nothing can be written to, and if it has a namespace for processes,
    ``/proc`` shows nobody else.

    Args:
        namespaces: what it has; gets what it is given and what is refused.
    """
    is_alone = namespaces.is_alone
    namespaces.attempt(NETWORK, lambda: _unshare(_NEW_NETWORK))
    namespaces.attempt(IPC, lambda: _unshare(_NEW_IPC))
    namespaces.attempt(UTS, lambda: _unshare(_NEW_UTS))
    namespaces.attempt(MOUNTS, lambda: _enter_mounts(is_alone))


def _try_out() -> Namespaces:
    """What the system allows, found out in a process that can be spoiled."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        with open(reading, "rb") as stream:
            answer = stream.read()
        os.waitpid(pid, 0)
        return (
            Namespaces(**json.loads(answer))
            if answer
            else Namespaces(refused=dict.fromkeys((USER, PROCESSES), "could not be tried out"))
        )
    try:
        found = Namespaces()
        found.attempt(USER, lambda: _unshare(_NEW_USER))
        found.attempt(PROCESSES, _try_processes)
        os.write(writing, json.dumps(vars(found)).encode())
    finally:
        os._exit(0)


def _try_processes() -> None:
    """Raise an ``OSError`` where there is no namespace for processes with a ``/proc`` of its own.

    Without that, a process would take others for itself.
    """
    _unshare_processes()
    pid = os.fork()
    if not pid:
        code = 0
        try:
            _detach_mounts()
            _mount_processes()
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise ProtectionError(code, f"mount /proc: {os.strerror(code)}")


def _enter_user() -> None:
    """A user namespace in which the caller's users and groups are those that they were.

    Root's right to read the files of all users goes on where root can hand it on.
    """
    uid, gid = os.geteuid(), os.getegid()
    maps = {
        name: _identity(Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map")
    }
    parent = os.getpid()
    reading, writing = os.pipe()
    helper = os.fork()
    if not helper:
        # Only a process outside can map more than one user.
        code = 1
        try:
            os.close(writing)
            os.read(reading, 1)
            for name, lines in maps.items():
                Path(f"/proc/{parent}/{name}").write_text(lines)
            code = 0
        finally:
            os._exit(code)
    os.close(reading)
    try:
        _unshare(_NEW_USER)
    finally:
        os.close(writing)
        is_mapped = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) == 0
    if not is_mapped:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _identity(lines: str) -> str:
    """The map of a namespace inside one that has the map ``lines``, everyone staying the same."""
    extents = (line.split() for line in lines.splitlines())
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in extents)


def _unshare_processes() -> None:
    """Let the next process be the first of a namespace, with mounts of its own."""
    _unshare(_NEW_PROCESSES | _NEW_MOUNTS)


def _enter_mounts(is_alone: bool) -> None:
    _unshare(_NEW_MOUNTS)
    _detach_mounts()
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SET_USER_ID, 0, 0, 0)
    syscall(
        "mount_setattr",
        _MOUNT_SETATTR,
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(b"/"),
        _AT_RECURSIVE,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    if is_alone:
        _mount_processes()


def _detach_mounts() -> None:
    """Keep what is mounted from here on from the rest of the system."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)


def _mount_processes() -> None:
    _mount("proc", "/proc", "proc", _NO_SET_USER_ID | _NO_DEVICES | _NO_PROGRAMS)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    texts = [ctypes.c_char_p(text and text.encode()) for text in (source, target, kind)]
    libc_call("mount", *texts, ctypes.c_ulong(flags), None)


def _unshare(flags: int) -> None:
    libc_call("unshare", ctypes.c_int(flags))
