# SPDX-License-Identifier: Apache-2.0
"""Ways to reach another process, and a process that tells whether one of them did.

Loaded by confined processes in the tests; run as a program it is the victim: it answers each line
of its input with its state as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)
#: x86-64, ARM64
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execveat": (322, 281),
    "get_robust_list": (274, 100),
    "inotify_init1": (294, 26),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgsnd": (69, 189),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semop": (65, 193),
    "sendmsg": (46, 211),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "shmat": (30, 196),
    "socketpair": (53, 199),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
NEW_NAMESPACES = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "ipc": 0x08000000,
    "mount": 0x00020000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
_SIGNAL = int(signal.SIGUSR1)
_CREATE = 0o1000


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def call(name: str, *arguments: Any) -> int:
    """A raw system call.

    Raises:
        OSError: the kernel refuses.
    """
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(ctypes.c_long(NUMBERS[name][_COLUMN]), *passed)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def ways(victim: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way to act on the victim, by name; each raises ``OSError`` if it is refused."""
    pid = victim["pid"]

    yield "kill", lambda: os.kill(pid, _SIGNAL)
    yield "kill of its group", lambda: os.kill(-pid, _SIGNAL)
    yield "tkill", lambda: call("tkill", pid, _SIGNAL)
    yield "tgkill", lambda: call("tgkill", pid, pid, _SIGNAL)
    info = (ctypes.c_int * 32)(_SIGNAL, 0, -1)
    yield "rt_sigqueueinfo", lambda: call("rt_sigqueueinfo", pid, _SIGNAL, info)
    yield "rt_tgsigqueueinfo", lambda: call("rt_tgsigqueueinfo", pid, pid, _SIGNAL, info)
    yield "signal by fcntl", lambda: _signal_by_fcntl(pid)

    limits = (ctypes.c_uint64 * 2)(1 << 20, 1 << 20)
    yield (
        "prlimit64",
        lambda: call("prlimit64", pid, int(resource.RLIMIT_CPU), limits, None),
    )
    yield "setpriority", lambda: call("setpriority", 0, pid, 19)
    yield "sched_setaffinity", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0))
    priority = (ctypes.c_int * 1)(0)
    yield "sched_setscheduler", lambda: call("sched_setscheduler", pid, 3, priority)
    yield "sched_setparam", lambda: call("sched_setparam", pid, priority)
    attributes = (ctypes.c_uint32 * 12)(48, 3, 0, 0, 19)  # size, policy, flags, nice
    yield "sched_setattr", lambda: call("sched_setattr", pid, attributes, 0)
    yield "ioprio_set", lambda: call("ioprio_set", 1, pid, 3 << 13)

    mine = ctypes.create_string_buffer(b"WRITTEN", 8)
    here, there = Vector(ctypes.addressof(mine), 8), Vector(victim["address"], 8)
    arguments = (pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    yield "process_vm_writev", lambda: call("process_vm_writev", *arguments)
    yield "process_vm_readv", lambda: call("process_vm_readv", *arguments)
    yield "mem", lambda: _write(f"/proc/{pid}/mem", b"WRITTEN", victim["address"])
    yield "oom_score_adj", lambda: _write(f"/proc/{pid}/oom_score_adj", b"900")
    yield "coredump_filter", lambda: _write(f"/proc/{pid}/coredump_filter", b"0")
    yield "timerslack_ns", lambda: _write(f"/proc/{pid}/timerslack_ns", b"1")
    yield "ptrace", lambda: call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE, which stops nothing

    yield "pidfd_open", lambda: call("pidfd_open", pid, 0)
    yield "pidfd_send_signal", lambda: _signal_by_descriptor(pid)
    yield "pidfd_getfd", lambda: call("pidfd_getfd", call("pidfd_open", pid, 0), 0, 0)
    yield "kcmp", lambda: call("kcmp", pid, os.getpid(), 1, 0, 0)
    yield "get_robust_list", lambda: call("get_robust_list", pid, limits, limits)
    yield "setns", lambda: call("setns", call("pidfd_open", pid, 0), 0x08000000)
    nodes = (ctypes.c_ulong * 1)(1)
    yield "migrate_pages", lambda: call("migrate_pages", pid, 1, nodes, nodes)
    yield "move_pages", lambda: call("move_pages", pid, 0, None, None, None, 0)

    yield "shared memory", lambda: _write(victim["shared"], b"WRITTEN")
    yield "System V shared memory", lambda: call("shmat", victim["shm"], 0, 0)
    operation = (ctypes.c_short * 3)(0, 1, 0)
    yield "System V semaphore", lambda: call("semop", victim["sem"], operation, 1)
    message = (ctypes.c_long * 2)(1, 1)
    yield "System V message", lambda: call("msgsnd", victim["msg"], message, 8, 0o4000)
    queue = victim["queue"].encode()
    yield "POSIX message queue", lambda: call("mq_open", queue, os.O_WRONLY, 0, None)
    yield "Unix socket", lambda: _connect(victim["socket"])
    yield "abstract Unix socket", lambda: _connect("\0" + victim["abstract"])
    yield "TCP", lambda: _connect(("127.0.0.1", victim["port"]), socket.AF_INET)

    yield "file lock", lambda: _lock(victim["locked"], fcntl.flock)
    yield "record lock", lambda: _lock(victim["locked"], fcntl.lockf)
    yield "lease", lambda: _lease(victim["locked"])


#: The ways that do act on a process of the same user; others depend on the system.
CERTAIN = {
    *("kill", "tkill", "tgkill", "rt_sigqueueinfo", "prlimit64", "setpriority"),
    *("sched_setaffinity", "sched_setscheduler", "ioprio_set", "oom_score_adj"),
    *("shared memory", "System V shared memory", "System V semaphore", "System V message"),
    *("POSIX message queue", "Unix socket", "abstract Unix socket", "TCP"),
    *("pidfd_open", "file lock", "lease", "signal by fcntl"),
}


def escapes() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Ways to more rights, other processes or places outside, for a confined process only."""
    zeros = (ctypes.c_uint64 * 16)()
    for name, flag in NEW_NAMESPACES.items():
        yield f"clone {name}", lambda flag=flag: _end_if_child(call("clone", flag, 0, 0, 0, 0))
        yield f"unshare {name}", lambda flag=flag: call("unshare", flag)
    # A thread's flags, and a namespace among them.
    thread = 0x3D0F00 | NEW_NAMESPACES["network"]
    yield "clone of a thread", lambda: call("clone", thread, 0, 0, 0, 0)
    yield "clone3", lambda: _end_if_child(call("clone3", zeros, 64))
    yield "fork", lambda: _end_if_child(os.fork())
    yield "execve", lambda: os.execv("/bin/true", ["true"])
    yield "execveat", lambda: call("execveat", -100, b"/bin/true", None, None, 0)
    yield "memfd_create", lambda: call("memfd_create", b"x", 0)
    yield "add_key", lambda: call("add_key", b"user", b"x", b"x", 1, -3)
    yield "request_key", lambda: call("request_key", b"user", b"x", None, 0)
    yield "keyctl", lambda: call("keyctl", 0, -3, 1)
    yield "perf_event_open", lambda: call("perf_event_open", zeros, 0, -1, -1, 0)
    yield "bpf", lambda: call("bpf", 0, zeros, 64)
    yield "userfaultfd", lambda: call("userfaultfd", 1)
    yield "io_uring_setup", lambda: call("io_uring_setup", 1, zeros)
    # Where it were let through, these find nothing to harm.
    yield "mount", lambda: call("mount", b"none", b"/no such folder", b"tmpfs", 0, None)
    yield "setpriority of a user", lambda: call("setpriority", 2, 54321, 9)
    yield "kill of all", lambda: os.kill(-1, 0)
    yield "open_by_handle_at", lambda: call("open_by_handle_at", -100, zeros, 0)
    yield "inotify_init1", lambda: call("inotify_init1", 0)
    yield "trace me", lambda: call("ptrace", 0, 0, 0, 0)
    yield "dumpable", lambda: call("prctl", 4, 0, 0, 0, 0)
    yield "die with parent, not", lambda: call("prctl", 1, 0, 0, 0, 0)
    yield "own limits", lambda: call("prlimit64", 0, int(resource.RLIMIT_NOFILE), zeros, None)
    yield "nice", lambda: os.nice(1)
    yield "setuid", lambda: os.setuid(os.getuid())
    yield "new group", os.setsid
    yield "chroot", lambda: os.chroot("/")
    yield "TIOCSTI", lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x")
    yield "TIOCSCTTY", lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    yield "terminal", lambda: os.open("/dev/tty", os.O_RDONLY)
    yield "socketpair", lambda: call("socketpair", 1, 1, 0, zeros)
    yield "sendmsg", lambda: call("sendmsg", 3, zeros, 0)
    yield "netlink", lambda: socket.socket(16, socket.SOCK_RAW, 0)
    yield "huge pages", lambda: mmap.mmap(-1, 2 << 20, flags=0x22 | 0x40000)
    for path in ("/dev/mem", "/dev/kmsg", "/proc/sysrq-trigger", "/proc/kcore", "/etc/passwd"):
        yield f"read {path}", lambda path=path: os.open(path, os.O_RDONLY)
    for path in ("/dev/null", "/dev/shm/new", "/tmp/new", "/proc/self/oom_score_adj"):
        yield f"write {path}", lambda path=path: os.open(path, os.O_WRONLY | os.O_CREAT)


def reach(victim: dict[str, Any], channel: Any) -> None:
    """Try all ways to the victim; send for each ``done`` or the name of the error."""
    _try(ways(victim), channel)


def escape(argument: Any, channel: Any) -> None:
    """Try all escapes, and send which descriptors are open."""
    channel.send({"descriptors": sorted(map(int, _open_descriptors()))})
    _try(escapes(), channel)


def look_around(victim: dict[str, Any], channel: Any) -> None:
    """Send what of the system can be seen."""
    channel.send(
        {
            "pid": os.getpid(),
            "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
            "interfaces": [name for _, name in socket.if_nameindex()],
        }
    )
    reach(victim, channel)


def _try(attempts: Iterator[tuple[str, Callable[[], Any]]], channel: Any) -> None:
    for name, action in attempts:
        try:
            action()
            channel.send({name: "done"})
        except OSError as error:
            channel.send({name: errno.errorcode.get(error.errno or 0, str(error))})


def _open_descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]


def _end_if_child(pid: int) -> None:
    if pid == 0:
        os._exit(0)


def _write(path: str, content: bytes, offset: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, offset) if offset else os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _signal_by_fcntl(pid: int) -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, pid)
    finally:
        os.close(descriptor)


def _signal_by_descriptor(pid: int) -> None:
    descriptor = os.open(f"/proc/{pid}", os.O_RDONLY)
    try:
        call("pidfd_send_signal", descriptor, _SIGNAL, None, 0)
    finally:
        os.close(descriptor)


def _connect(address: Any, family: int = socket.AF_UNIX) -> None:
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect(address)


def _lock(path: str, lock: Callable[[int, int], Any]) -> None:
    with open(path, "rb") as stream:
        kind = fcntl.LOCK_EX if lock is fcntl.flock else fcntl.LOCK_SH
        lock(stream.fileno(), kind | fcntl.LOCK_NB)


def _lease(path: str) -> None:
    with open(path, "rb") as stream:
        fcntl.fcntl(stream.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)


def be_victim(folder: Path) -> None:
    """Offer everything that another process could act on; tell the state for each line of input."""
    received: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGIO):
        signal.signal(number, lambda number, frame: received.append(number))
    memory = ctypes.create_string_buffer(b"INTACT.", 8)
    shared = Path("/dev/shm") / f"victim-{os.getpid()}"
    shared.write_bytes(b"INTACT.")
    locked = folder / "locked"
    locked.write_bytes(b"content")
    here = socket.socket(socket.AF_UNIX)
    here.bind(str(folder / "socket"))
    here.listen()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0victim-{os.getpid()}")
    abstract.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    shm = LIBC.shmget(0, 4096, _CREATE | 0o600)
    sem = LIBC.semget(0, 1, _CREATE | 0o600)
    msg = LIBC.msgget(0, _CREATE | 0o600)
    # The kernel's own call takes the name without the slash.
    queue = f"victim-{os.getpid()}"
    call("mq_open", queue.encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
    try:
        about = {
            "pid": os.getpid(),
            "address": ctypes.addressof(memory),
            "shared": str(shared),
            "locked": str(locked),
            "socket": str(folder / "socket"),
            "abstract": f"victim-{os.getpid()}",
            "port": tcp.getsockname()[1],
            **{"shm": shm, "sem": sem, "msg": msg, "queue": queue},
        }
        print(json.dumps(about), flush=True)
        for _ in sys.stdin:
            state = {
                "signals": len(received),
                "memory": memory.value.decode(),
                "shared": shared.read_text(),
                "semaphore": LIBC.semctl(sem, 0, 12),  # GETVAL
                "cpu limit": resource.getrlimit(resource.RLIMIT_CPU),
                "nice": os.getpriority(os.PRIO_PROCESS, 0),
                "policy": os.sched_getscheduler(0),
                "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
                "traced": "TracerPid:\t0\n" in Path("/proc/self/status").read_text(),
            }
            print(json.dumps(state), flush=True)
    finally:
        shared.unlink()
        LIBC.shmctl(shm, 0, None)  # IPC_RMID
        LIBC.semctl(sem, 0, 0)
        LIBC.msgctl(msg, 0, None)
        ctypes.CDLL(None).mq_unlink(f"/{queue}".encode())


class Printing:
    """Takes messages where no confined process sends them."""

    def send(self, content: dict[str, Any]) -> None:
        """Print one message."""
        print(json.dumps(content), flush=True)


if __name__ == "__main__":
    be_victim(Path(sys.argv[1]))
