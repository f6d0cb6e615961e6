# SPDX-License-Identifier: Apache-2.0
"""The system calls that a confined process may make: what reading weights and inference need.

The list was recorded with ``strace`` over every kind of detector and of weights, with figures and
with several threads; the groups say what else belongs to the same need. What a GPU's driver needs
besides is in groups of its own, as far as it is documented.
"""

from __future__ import annotations

from .bpf import Conditions, Masked, Null, equals

#: Numbers of the calls named below: x86-64, ARM64.
NUMBERS: dict[str, tuple[int, int | None]] = {
    "access": (21, None),
    "bind": (49, 200),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "close": (3, 57),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "eventfd2": (290, 19),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fadvise64": (221, 223),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "get_mempolicy": (239, 236),
    "getcpu": (309, 168),
    "getcwd": (79, 17),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "getsockname": (51, 204),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "ioctl": (16, 29),
    "kill": (62, 129),
    "listen": (50, 201),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mbind": (237, 235),
    "membarrier": (324, 283),
    "memfd_create": (319, 279),
    "mincore": (27, 232),
    "mlock": (149, 228),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munlock": (150, 229),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_setaffinity": (203, 122),
    "sched_yield": (24, 124),
    "select": (23, None),
    "sendto": (44, 206),
    "set_mempolicy": (238, 237),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "setsockopt": (54, 208),
    "shutdown": (48, 210),
    "sigaltstack": (131, 132),
    "socket": (41, 198),
    "stat": (4, None),
    "statfs": (137, 43),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "tgkill": (234, 131),
    "time": (201, None),
    "times": (100, 153),
    "uname": (63, 160),
    "write": (1, 64),
    "writev": (20, 66),
}

_ALWAYS = (
    *("futex", "read", "lseek", "munmap", "mprotect", "madvise", "brk", "mremap", "mincore"),
    *("newfstatat", "fstat", "stat", "lstat", "statx", "statfs", "fstatfs"),
    *("access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd"),
    *("pread64", "readv", "preadv", "getdents64", "getdents", "fadvise64", "close"),
    # to the pipe that is its standard output: nothing else is open for writing
    *("write", "writev"),
    *("dup", "dup2", "dup3", "poll", "ppoll", "select", "pselect6", "shutdown"),
    *("sched_yield", "sched_getaffinity", "sched_get_priority_max", "sched_get_priority_min"),
    *("set_robust_list", "rseq", "set_tid_address", "getcpu", "gettid", "exit", "exit_group"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_getres", "gettimeofday", "time", "times"),
    *("nanosleep", "clock_nanosleep"),
    *("getpid", "getppid", "getuid", "geteuid", "getgid", "getegid", "uname", "sysinfo"),
    *("getrandom", "getrusage", "getrlimit"),
)
_WITH_GPU = (
    *("bind", "listen", "setsockopt", "getsockname"),
    *("memfd_create", "ftruncate", "mlock", "munlock"),
    *("pipe2", "eventfd2", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait"),
    *("get_mempolicy", "set_mempolicy", "mbind", "membarrier"),
    *("sched_getparam", "sched_getscheduler"),
)

_EVERY_BIT = 0xFFFFFFFF
# <fcntl.h>, the same on both architectures.
_ACCESS_MODE, _CREATE, _TRUNCATE, _ASYNC = 0o3, 0o100, 0o1000, 0o20000
_PATH, _TEMPORARY = 0o10000000, 0o20000000
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
# <asm-generic/ioctls.h>: is it a terminal, and how wide; close on exec; bytes to read.
_TCGETS, _TIOCGWINSZ, _FIOCLEX, _FIONREAD = 0x5401, 0x5413, 0x5451, 0x541B
# NVIDIA's drivers: the kind of request of all but the one for unified memory, whose requests are
# small numbers and two that begin and end its use.
_NVIDIA_KIND, _UVM_INITIALIZE, _UVM_DEINITIALIZE = 0x4600, 0x30000001, 0x30000002
# <linux/mman.h>: pages that do not count as the process's own.
_MAP_HUGETLB = 0x40000
# <linux/prctl.h>: names of threads and of mappings.
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
# <linux/sched.h>
_CLONE_THREAD = 0x00010000
_CLONE_OF_A_THREAD = (
    0x00000100  # VM
    | 0x00000200  # FS
    | 0x00000400  # FILES
    | 0x00000800  # SIGHAND
    | _CLONE_THREAD
    | 0x00040000  # SYSVSEM
    | 0x00080000  # SETTLS
    | 0x00100000  # PARENT_SETTID
    | 0x00200000  # CHILD_CLEARTID
    | 0x00400000  # DETACHED, which does nothing; musl sets it
    | 0x01000000  # CHILD_SETTID
)
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 1, 5
_SOCKET_TYPE = 0xF


def allowed_calls(own_pid: int, gpu: bool = False) -> dict[str, tuple[Conditions, ...]]:
    """The allowed calls by name, each with the cases in which it is allowed.

    Args:
        own_pid: of the process that is to be confined.
        gpu: allow what NVIDIA's drivers need besides: ``ioctl`` on their devices, opening for
            writing, memory without a file, and an abstract socket that nobody can connect to.
    """
    flags = _CREATE | _TRUNCATE | _TEMPORARY | _PATH | (0 if gpu else _ACCESS_MODE)
    requests = [equals(1, r) for r in (_TCGETS, _TIOCGWINSZ, _FIOCLEX, _FIONREAD)]
    commands = [_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC]
    if gpu:
        requests += [
            Masked(1, 0xFF00, _NVIDIA_KIND),
            Masked(1, 0xFFFFFF00, 0),
            equals(1, _UVM_INITIALIZE),
            equals(1, _UVM_DEINITIALIZE),
        ]
        commands += [_F_ADD_SEALS, _F_GET_SEALS]
    calls: dict[str, tuple[Conditions, ...]] = {
        # Made most often, so that the kernel finds them first.
        **dict.fromkeys(("futex", "read", "lseek"), ((),)),
        "mmap": ((Masked(3, _MAP_HUGETLB, 0),),),
        "openat": ((Masked(2, flags, 0),),),
        "open": ((Masked(1, flags, 0),),),
        # Not F_SETOWN and F_SETSIG, by which the kernel sends any signal to any process; no locks
        # on files that others use.
        "fcntl": (
            *((equals(1, command),) for command in commands),
            (equals(1, _F_SETFL), Masked(2, _ASYNC, 0)),
        ),
        "ioctl": tuple((request,) for request in requests),
        # Threads, in no namespace of their own.
        "clone": (
            (
                Masked(0, _CLONE_THREAD, _CLONE_THREAD),
                Masked(0, ~_CLONE_OF_A_THREAD & _EVERY_BIT, 0),
            ),
        ),
        # abort() and raise() send themselves a signal.
        "tgkill": ((equals(0, own_pid),),),
        "kill": ((equals(0, own_pid),),),
        "sched_setaffinity": ((equals(0, 0),), (equals(0, own_pid),)),
        # Limits can be read, and only its own.
        "prlimit64": (
            (equals(0, 0), Null(2)),
            (equals(0, own_pid), Null(2)),
        ),
        "prctl": tuple((equals(0, o),) for o in (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)),
        # On the socket that is open, without an address.
        "sendto": ((Null(4),),),
    }
    if gpu:
        calls["socket"] = tuple(
            (equals(0, _AF_UNIX), Masked(1, _SOCKET_TYPE, kind))
            for kind in (_SOCK_STREAM, _SOCK_SEQPACKET)
        )
    for name in (*_ALWAYS, *(_WITH_GPU if gpu else ())):
        calls[name] = ((),)
    return calls
