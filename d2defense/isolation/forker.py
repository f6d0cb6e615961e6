# SPDX-License-Identifier: Apache-2.0
"""The server process: imports once, forks a confined process for every run, and watches it.

Started by :class:`d2defense.isolation.server.Server`. It never opens a file of a run itself, and it
has one thread, so that its forks are sound. Where the system has namespaces, it lives in its own
ones and sees no other processes than those that it forks.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from d2defense.user_modules import import_module

from .confinement import confine
from .limits import MAX_THREADS, Limits, usage
from .messages import Channel
from .namespaces import Namespaces, ProcessNamespaces, enter
from .system import is_linux

READY = b"ready"
LENGTH = struct.Struct("!Q")
_POLL_SECONDS = 0.02
_TAIL_BYTES = 2000
# A killed process ends at once unless the kernel waits for a file system that does not answer.
_GRACE_SECONDS = 10.0


@dataclass
class _Child:
    """One confined process.

    Attributes:
        pid: of the process.
        status: to tell the caller how it ended; at its end of file the caller has given up.
        errors: reads what the process writes to its standard output and standard error.
        limits: of the process.
        deadline: on the monotonic clock, None for none.
        is_first: whether it is the first process of a namespace (:func:`_end_by_abort`).
        tail: the last it wrote.
        killed_for: "time", "memory" or "threads" once it was killed for that.
        killed_at: on the monotonic clock, None before.
    """

    pid: int
    status: socket.socket
    errors: int
    limits: Limits
    deadline: float | None
    is_first: bool = False
    tail: bytes = b""
    killed_for: str | None = None
    killed_at: float | None = None


@dataclass(frozen=True)
class Request:
    """What a run may take.

    Attributes:
        limits: of memory and time.
        gpu: whether it uses a GPU.
        complete: whether it must not begin where a protection is missing.
    """

    limits: Limits
    gpu: bool = False
    complete: bool = False

    def encode(self) -> bytes:
        """As it is sent to the server."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Request:
        """The inverse of :meth:`encode`."""
        content = json.loads(message)
        return cls(**content | {"limits": Limits(**content["limits"])})


def serve(control_descriptor: int, preload: list[str]) -> None:
    """Fork on request until the other end of the control socket closes.

    Args:
        control_descriptor: of a SOCK_SEQPACKET socket. Each message is a :class:`Request`, with
            two descriptors: the run's data socket and its status socket.
        preload: modules to import before the first fork; by name or path
            (:func:`~d2defense.user_modules.import_module`); one with a function
            ``warm_up_server`` has it called.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever started the server ends it, by closing the socket.
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=control_descriptor)
    own = enter(control.close) if is_linux() else Namespaces()
    namespaces = ProcessNamespaces(own)
    for name in preload:
        with warnings.catch_warnings():
            # The caller imports the same modules and shows what they have to say.
            warnings.showwarning = _ignore_warning
            getattr(import_module(name), "warm_up_server", lambda: None)()
    # Objects that no collection visits stay in pages that all children share.
    gc.collect()
    gc.freeze()
    control.send(READY)
    children: list[_Child] = []
    try:
        while True:
            waiting = [control, *(c.status for c in children), *(c.errors for c in children)]
            ready, _, _ = select.select(waiting, [], [], _POLL_SECONDS if children else None)
            if control in ready:
                request = _receive(control)
                if request is None:
                    break
                children.append(_start(namespaces, *request))
            for child in children:
                if child.errors in ready:
                    _read_tail(child)
                if child.status in ready:
                    _kill(child)  # only an end of file can arrive here
            children = [child for child in children if not _has_ended(child)]
    finally:
        for child in children:
            _kill(child)
    # Libraries have much to say about a clean end that nobody needs here.
    os._exit(0)


def _ignore_warning(*arguments: Any, **keywords: Any) -> None:
    pass


def _receive(control: socket.socket) -> tuple[Request, socket.socket, socket.socket] | None:
    message, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
    if not message:
        return None
    data, status = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    return Request.decode(message), data, status


def _start(
    namespaces: ProcessNamespaces, request: Request, data: socket.socket, status: socket.socket
) -> _Child:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid, own = namespaces.fork()
    if pid == 0:
        code = 1
        try:
            if own.is_alone:
                _end_by_abort()
            _keep_open(writing, data.fileno())
            code = _run(socket.socket(fileno=3), request, own, parent)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    data.close()
    os.close(writing)
    os.set_blocking(reading, False)
    limits = request.limits
    deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
    return _Child(pid, status, reading, limits, deadline, own.is_alone)


def _end_by_abort() -> None:
    """Have ``abort()`` end this process with the signal's number as its exit code.

    The kernel ignores a signal that the first process of a namespace sends itself, unless there is
    a handler; ``abort()`` would then crash instead, which would say something else of the cause.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(ctypes.c_int(signal.SIGABRT), ctypes.cast(libc._exit, ctypes.c_void_p))


def _keep_open(output: int, data: int) -> None:
    """Have nothing as standard input, ``output`` as both outputs, ``data`` as descriptor 3.

    Whatever else is open, also through a library, is not for a confined process.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2), (data, 3)):
        os.dup2(source, target)
    listed = os.listdir("/proc/self/fd" if is_linux() else "/dev/fd")
    os.closerange(4, max(map(int, listed)) + 1)


def _run(data: socket.socket, request: Request, own: Namespaces, parent: int) -> int:
    """In the new process: read what to do from the trusted caller, confine, do it."""
    with data.makefile("rb") as stream:
        (length,) = LENGTH.unpack(stream.read(LENGTH.size))
        # Sent by the process that started the server, before anything untrusted was opened.
        module, name, readable, argument = pickle.loads(stream.read(length))
    function = getattr(importlib.import_module(module), name)
    protections = confine(readable, request.limits, request.gpu, own)
    # In a namespace of its own the parent has no number, and its end is the namespace's.
    if os.getppid() not in (parent, 0):
        return 1
    channel = Channel(data)
    channel.send({"isolation": protections})
    if not (request.complete and protections["missing"]):
        function(argument, channel)
    data.shutdown(socket.SHUT_RDWR)
    return 0


def _read_tail(child: _Child) -> None:
    with suppress(BlockingIOError):
        child.tail = (child.tail + os.read(child.errors, 1 << 16))[-_TAIL_BYTES:]


def _kill(child: _Child) -> None:
    child.killed_at = child.killed_at or time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


def _has_ended(child: _Child) -> bool:
    """Keep the limits of one process; whether it is over with, and its end reported."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid:
        code = os.waitstatus_to_exitcode(status)
        _tell_end(child, -code if child.is_first and code == signal.SIGABRT else code)
        return True
    if child.killed_at is None:
        child.killed_for = _broken_limit(child)
        if child.killed_for:
            _kill(child)
    elif time.monotonic() > child.killed_at + _GRACE_SECONDS:
        # The kernel ends it when it can; nobody waits for that.
        _tell_end(child, -signal.SIGKILL)
        return True
    return False


def _broken_limit(child: _Child) -> str | None:
    limits = child.limits
    if child.deadline is not None and time.monotonic() > child.deadline:
        return "time"
    taken = usage(child.pid)
    if limits.memory_bytes is not None and taken.memory_bytes > limits.memory_bytes:
        return "memory"
    return "threads" if taken.threads > MAX_THREADS else None


def _tell_end(child: _Child, exit_code: int) -> None:
    before = None
    while child.tail != before:
        before = child.tail
        _read_tail(child)
    os.close(child.errors)
    report: dict[str, Any] = {
        "exit_code": exit_code,
        "killed_for": child.killed_for,
        "tail": child.tail.decode("utf-8", errors="replace"),
    }
    with suppress(OSError):
        child.status.sendall(json.dumps(report).encode("utf-8"))
    child.status.close()
