# SPDX-License-Identifier: Apache-2.0
"""The server process: imports once, forks a confined process for every run, and watches it.

Started by :class:`d2defense.isolation.server.Server`. It never opens a file of a run itself, and it
has one thread, so that its forks are sound.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from typing import Any

from d2defense.user_modules import import_module

from .confine import confine
from .limits import Limits, own_memory
from .messages import Channel

READY = b"ready"
LENGTH = struct.Struct("!Q")
_POLL_SECONDS = 0.02
_TAIL_BYTES = 2000


@dataclass
class _Child:
    """One confined process.

    Attributes:
        pid: of the process.
        status: to tell the caller how it ended; at its end of file the caller has given up.
        errors: reads what the process writes to its standard output and standard error.
        limits: of the process.
        deadline: on the monotonic clock, None for none.
        tail: the last it wrote.
        killed_for: "time" or "memory" once it was killed for that.
    """

    pid: int
    status: socket.socket
    errors: int
    limits: Limits
    deadline: float | None
    tail: bytes = b""
    killed_for: str | None = None


def serve(control_descriptor: int, preload: list[str]) -> None:
    """Fork on request until the other end of the control socket closes.

    Args:
        control_descriptor: of a SOCK_SEQPACKET socket. Each request is the limits as JSON, with
            two descriptors: the run's data socket and its status socket.
        preload: modules to import before the first fork; by name or path
            (:func:`~d2defense.user_modules.import_module`); one with a function
            ``warm_up_server`` has it called.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever started the server ends it, by closing the socket.
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=control_descriptor)
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
                children.append(_start(control, children, *request))
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


def _receive(control: socket.socket) -> tuple[Limits, socket.socket, socket.socket] | None:
    message, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
    if not message:
        return None
    data, status = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    return Limits(**json.loads(message)), data, status


def _start(
    control: socket.socket,
    others: list[_Child],
    limits: Limits,
    data: socket.socket,
    status: socket.socket,
) -> _Child:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            control.close()
            status.close()
            for other in others:
                other.status.close()
                os.close(other.errors)
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.close(writing)
            code = _run(data, limits, parent)
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
    deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
    return _Child(pid, status, reading, limits, deadline)


def _run(data: socket.socket, limits: Limits, parent: int) -> int:
    """In the new process: read what to do from the trusted caller, confine, do it."""
    with data.makefile("rb") as stream:
        (length,) = LENGTH.unpack(stream.read(LENGTH.size))
        # Sent by the process that started the server, before anything untrusted was opened.
        module, name, readable, argument = pickle.loads(stream.read(length))
    function = getattr(importlib.import_module(module), name)
    protections = confine(readable, limits)
    if os.getppid() != parent:
        return 1
    channel = Channel(data)
    channel.send({"isolation": protections})
    function(argument, channel)
    data.shutdown(socket.SHUT_RDWR)
    return 0


def _read_tail(child: _Child) -> None:
    with suppress(BlockingIOError):
        child.tail = (child.tail + os.read(child.errors, 1 << 16))[-_TAIL_BYTES:]


def _kill(child: _Child) -> None:
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


def _has_ended(child: _Child) -> bool:
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if not pid:
        limits = child.limits
        if child.deadline is not None and time.monotonic() > child.deadline:
            child.killed_for = child.killed_for or "time"
        elif limits.memory_bytes is not None and own_memory(child.pid) > limits.memory_bytes:
            child.killed_for = child.killed_for or "memory"
        if child.killed_for:
            _kill(child)
        return False
    before = None
    while child.tail != before:
        before = child.tail
        _read_tail(child)
    os.close(child.errors)
    report: dict[str, Any] = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "killed_for": child.killed_for,
        "tail": child.tail.decode("utf-8", errors="replace"),
    }
    with suppress(OSError):
        child.status.sendall(json.dumps(report).encode("utf-8"))
    child.status.close()
    return True
