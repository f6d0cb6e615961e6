# SPDX-License-Identifier: Apache-2.0
"""The trusted side: start the server process, have it run functions, read what they send."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .errors import ChildFailedError, IncompleteProtectionError, ServerLostError
from .forker import LENGTH, READY, Request
from .limits import MAX_THREADS, Limits, format_size
from .messages import Decoder, MessageError

OnMessage = Callable[[dict[str, Any], bytes], None]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from d2defense.isolation.forker import serve; serve(int(sys.argv[1]), sys.argv[3:])"
)
_DEFAULTS = {
    # Numerical libraries start threads when they are imported; a fork must come from one thread.
    "OPENBLAS_NUM_THREADS": "1",
    # Beside other processes, threads that wait actively keep the processor from the one that they
    # wait for.
    "OMP_WAIT_POLICY": "PASSIVE",
}
# A confined process may not give a thread a processor.
_PINNING = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}
_CLOSE_SECONDS = 5.0


class Server:
    """A process that has imported what runs need, and forks one confined process for each.

    Starting it takes as long as the imports; it goes on in the background until the first run.

    Args:
        preload: modules to import, by name or path; a function ``warm_up_server`` in one of them is
            called.

    Raises:
        ServerLostError: it cannot be started.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._is_ready = False
        arguments = [str(other.fileno()), json.dumps(sys.path), *preload]
        inherited = {name: value for name, value in os.environ.items() if name not in _PINNING}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=_DEFAULTS | inherited,
                # Ctrl-C in a terminal reaches the caller alone, which then ends the runs.
                start_new_session=True,
            )
        except OSError as error:
            raise ServerLostError(f"no process can be started: {error.strerror}") from None
        finally:
            other.close()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def start(
        self,
        function: str,
        argument: Any,
        readable: Iterable[Path] = (),
        limits: Limits | None = None,
        gpu: bool = False,
        complete: bool = False,
    ) -> Run:
        """Run a function in a confined process of its own; may be called from many threads.

        The function gets an argument and a channel, on which it sends messages: JSON objects, with
        bytes if it wants to. It can read the files that are named here, the interpreter's and the
        system's; compute, with threads; and nothing else. In particular it can neither write a
        file, start a program, reach another process, nor get an answer on the channel.

        Args:
            function: ``"module:name"`` of a function that takes ``argument`` and a
                :class:`~d2defense.isolation.messages.Channel`.
            argument: pickled for the way there.
            readable: files and folders that the function may read; what does not exist is left out.
            limits: of memory and time; the defaults if None.
            gpu: let the function use GPUs, whose driver needs more of the system.
            complete: do not call the function where a protection is missing.

        Raises:
            ServerLostError: the server is gone.
        """
        limits = limits or Limits()
        data, child_data = socket.socketpair()
        status, child_status = socket.socketpair()
        module, _, name = function.partition(":")
        payload = pickle.dumps((module, name, [Path(p).absolute() for p in readable], argument))
        request = Request(limits, gpu, complete)
        try:
            with self._lock:
                if not self._is_ready:
                    # Empty if the server ended before it was ready: its imports failed.
                    self._is_ready = self._control.recv(len(READY)) == READY
                    if not self._is_ready:
                        raise ConnectionResetError("it did not start")
                descriptors = [child_data.fileno(), child_status.fileno()]
                socket.send_fds(self._control, [request.encode()], descriptors)
            child_data.close()
            child_status.close()
            data.sendall(LENGTH.pack(len(payload)) + payload)
        except OSError as error:
            for end in (data, child_data, status, child_status):
                end.close()
            raise ServerLostError(f"the process that scans are forked from: {error}") from None
        return Run(data, status, request)

    def protections(self, gpu: bool = False) -> dict[str, Any]:
        """Which protections a run has here (:func:`~d2defense.isolation.confinement.confine`).

        Args:
            gpu: as of :meth:`start`.

        Raises:
            ChildFailedError: a process that does nothing failed.
            ServerLostError: the server is gone.
        """
        run = self.start("operator:is_", None, gpu=gpu)
        run.wait(lambda content, blob: None)
        return run.isolation or {}

    def is_alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the server and all runs."""
        self._control.close()
        if not self._is_ready:
            # It would notice after its imports only, and has no runs yet.
            self._process.kill()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Run:
    """One run in a confined process; made by :meth:`Server.start`.

    Attributes:
        isolation: the protections that were active, as
            :func:`~d2defense.isolation.confinement.confine` describes them; None before they were.
    """

    def __init__(self, data: socket.socket, status: socket.socket, request: Request) -> None:
        self._data = data
        self._status = status
        self._request = request
        self._is_cancelled = False
        self.isolation: dict[str, Any] | None = None

    def wait(self, on_message: OnMessage) -> None:
        """Hand on what the function sends until its process has ended.

        Args:
            on_message: called with each message, in this thread; what it holds is not to be
                trusted.

        Raises:
            ChildFailedError: the process crashed, hung or broke a limit.
            IncompleteProtectionError: :attr:`isolation` lacks one, and that was not allowed.
            ServerLostError: the server ended, or the run was cancelled.
        """
        decoder, report = Decoder(), bytearray()
        broken: MessageError | None = None
        waiting = [self._data, self._status]
        try:
            while waiting:
                for end in select.select(waiting, [], [])[0]:
                    received = _receive(end)
                    if not received:
                        waiting.remove(end)
                    elif end is self._status:
                        report += received
                    elif broken is None:
                        try:
                            self._hand_on(decoder, received, on_message)
                        except MessageError as error:
                            broken = error
        finally:
            self._data.close()
            self._status.close()
        if self._is_cancelled or not report:
            raise ServerLostError("the process that scans are forked from ended")
        self._check(json.loads(report))
        if broken or not decoder.is_empty:
            raise ChildFailedError(f"its process sent nonsense: {broken or 'half a message'}")
        if self._request.complete and (missing := (self.isolation or {}).get("missing")):
            raise IncompleteProtectionError(missing)

    def cancel(self) -> None:
        """Kill the process; :meth:`wait`, in whichever thread, then ends."""
        self._is_cancelled = True
        for end in (self._status, self._data):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _hand_on(self, decoder: Decoder, received: bytes, on_message: OnMessage) -> None:
        for content, blob in decoder.feed(received):
            if self.isolation is None:
                # The first message is the server's own, sent before anything untrusted is read.
                self.isolation = content.get("isolation") or {}
            else:
                on_message(content, blob)

    def _check(self, report: dict[str, Any]) -> None:
        limits = self._request.limits
        if report["killed_for"] == "time":
            raise ChildFailedError(f"exceeded the time limit of {limits.seconds:g} s")
        if report["killed_for"] == "memory":
            size = format_size(limits.memory_bytes or 0)
            raise ChildFailedError(f"exceeded the memory limit of {size}")
        if report["killed_for"] == "threads":
            raise ChildFailedError(f"started more than {MAX_THREADS} threads")
        code = report["exit_code"]
        if code == 0:
            return
        lines = [line.strip() for line in report["tail"].splitlines() if line.strip()]
        last_words = f": {lines[-1]}" if lines else ""
        if code < 0:
            with contextlib.suppress(ValueError):
                code = signal.Signals(-code).name
            raise ChildFailedError(f"its process was ended by {code}{last_words}")
        raise ChildFailedError(f"its process ended with code {code}{last_words}")


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 20)
    except OSError:  # reset by a process that died
        return b""


@cache
def _shared(process: int, preload: tuple[str, ...]) -> list[Server]:
    servers: list[Server] = []

    def close() -> None:
        if os.getpid() == process:
            for server in servers:
                server.close()

    atexit.register(close)
    return servers


def shared_server(preload: Sequence[str] = ()) -> Server:
    """A server that this process keeps for all who preload the same; replaced once it is gone."""
    servers = _shared(os.getpid(), tuple(preload))
    if not servers or not servers[0].is_alive():
        servers[:] = [Server(preload)]
    return servers[0]
