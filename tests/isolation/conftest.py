# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from d2defense.isolation import Limits, Server

TASKS = '''
"""What confined processes do in the tests: each function tries one thing."""
import ctypes, mmap, os, signal, socket, sys, threading, time


def attempts(channel, **actions):
    """Send for each action whether it was done, else the error."""
    for name, action in actions.items():
        try:
            action()
            channel.send({name: "done"})
        except OSError as error:
            channel.send({name: error.strerror})


SEEN = []


def echo(argument, channel):
    SEEN.append(argument)
    channel.send({"argument": argument, "seen": len(SEEN)}, b"\\x00\\xff")


def loaded(argument, channel):
    channel.send({"preloaded": sys.modules[__name__].__dict__.get("WARM")})


def warm_up_server():
    global WARM
    WARM = True


def segfault(argument, channel):
    ctypes.string_at(0)


def abort(argument, channel):
    print("the last words", file=sys.stderr, flush=True)
    os.abort()


def raise_error(argument, channel):
    raise RuntimeError("a bad day")


def leave(argument, channel):
    os._exit(0)


def hang(argument, channel):
    channel.send({"hangs": os.getpid()})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def allocate(argument, channel):
    try:
        bytearray(argument)
        channel.send({"allocated": argument})
    except MemoryError:
        channel.send({"refused": argument})


def share(argument, channel):
    memory = mmap.mmap(-1, argument)
    for start in range(0, argument, 4096):
        memory[start] = 1
    channel.send({"shared": argument})


def nonsense(argument, channel):
    channel._connection.sendall(bytes.fromhex(argument))


def flood(argument, channel):
    for _ in range(1000):
        print("x" * 100_000, file=sys.stderr)
    channel.send({"done": True})


def network(argument, channel):
    def connect():
        with socket.socket() as client:
            client.settimeout(2)
            client.connect(("127.0.0.1", argument))
    attempts(channel, tcp=connect, udp=lambda: socket.socket(type=socket.SOCK_DGRAM),
             unix=lambda: socket.socket(socket.AF_UNIX))


def files(argument, channel):
    inside, outside, new = argument
    attempts(channel, inside=lambda: open(inside).read(), outside=lambda: open(outside).read(),
             append=lambda: open(inside, "a"), create=lambda: open(new, "w"),
             remove=lambda: os.remove(inside), rename=lambda: os.rename(inside, new),
             link=lambda: os.symlink(inside, new), folder=lambda: os.mkdir(new),
             home=lambda: os.listdir(os.path.expanduser("~")),
             null=lambda: open(os.devnull, "w").write("x"))


def observe(argument, channel):
    with open("/proc/self/status") as stream:
        pairs = (line.rstrip().partition(":\\t") for line in stream)
        status = {name: value for name, _, value in pairs}
    names = ("pid", "net", "ipc", "mnt", "uts", "user")
    status["namespaces"] = {name: os.readlink(f"/proc/self/ns/{name}") for name in names}
    channel.send(status)


def start_thread(argument, channel):
    thread = threading.Thread(target=lambda: channel.send({"thread": "done"}))
    thread.start()
    thread.join()
'''


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the functions of :data:`TASKS` loaded."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "isolated_tasks.py").write_text(TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        server = Server(["isolated_tasks"])
    yield server
    server.close()


@pytest.fixture
def run(server: Server) -> Callable[..., list[tuple[dict[str, Any], bytes]]]:
    """A function that runs one of :data:`TASKS` and returns the messages it sent."""

    def run(name: str, argument: Any = None, readable: tuple[Path, ...] = (), **limits: Any) -> Any:
        messages: list[tuple[dict[str, Any], bytes]] = []
        chosen = Limits(**limits) if limits else None
        server.start(f"isolated_tasks:{name}", argument, readable, chosen).wait(
            lambda content, blob: messages.append((content, blob))
        )
        return messages

    return run
