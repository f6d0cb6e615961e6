# SPDX-License-Identifier: Apache-2.0
"""What a confined process cannot do."""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import socket
import subprocess
import sys

import pytest

from d2defense.isolation import landlock
from d2defense.isolation.errors import ProtectionError
from d2defense.isolation.system import is_linux

REFUSED = {
    *("Operation not permitted", "Permission denied", "Network is unreachable"),
    *("Read-only file system", "Function not implemented", "No such process"),
}


@pytest.fixture(scope="module")
def protections(server):
    """What the server says of the means that this system offers."""
    run = server.start("isolated_tasks:leave", None)
    run.wait(lambda content, blob: None)
    return run.isolation


def sent(messages) -> dict:
    return {key: value for content, _ in messages for key, value in content.items()}


def test_the_record_is_what_the_kernel_says(run, server):
    """Of the process itself, of its namespaces and of those of the one that asked."""
    (seen,) = [content for content, _ in run("observe")]
    isolation = server.protections()
    assert isolation["mode"] == "process"
    assert isolation["memory_limit_bytes"] == 8 << 30
    assert isolation["time_limit_seconds"] == 3600
    assert isolation["gpu"] is False
    assert (isolation["system_calls"] == "seccomp") == (seen["Seccomp"] == "2")
    assert seen["NoNewPrivs"] == "1"
    kept = 1 << 1 | 1 << 2 if os.geteuid() == 0 else 0  # to read files of others
    assert int(seen["CapEff"], 16) | int(seen["CapPrm"], 16) | kept == kept
    names = {"pid": "pid", "net": "network", "ipc": "ipc", "mnt": "mount", "uts": "uts"}
    own = {
        ours
        for name, ours in (names | {"user": "user"}).items()
        if seen["namespaces"][name] != os.readlink(f"/proc/self/ns/{name}")
    }
    assert own == set(isolation["namespaces"])
    refused = {"user", *names.values()} - own
    told = " ".join(line for line in isolation["missing"] if line.startswith("namespaces"))
    assert refused == {name for name in {"user", *names.values()} if name in told}
    by_namespace = {name for name in ("network", "processes") if isolation[name] == "namespace"}
    assert ("processes" in by_namespace) == ("pid" in own)
    assert ("network" in by_namespace) == ("network" in own)


def test_no_network(run, protections):
    if protections["system_calls"] is None:
        pytest.skip(f"this system offers none: {protections['missing']}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outcome = sent(run("network", listener.getsockname()[1]))
    assert outcome == dict.fromkeys(("tcp", "udp", "unix"), "Operation not permitted")


def test_only_the_named_files_can_be_read_and_none_written(run, protections, tmp_path):
    if protections["files"] is None:
        pytest.skip(f"this system offers none: {protections['missing']}")
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for path in (inside, outside):
        path.write_text("content")
    outcome = sent(run("files", [inside, outside, tmp_path / "new"], (inside,)))
    assert outcome.pop("inside") == "done"
    assert set(outcome.values()) <= REFUSED, outcome
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]
    assert inside.read_text() == "content"


def test_a_named_folder_can_be_read_with_what_is_below_it(run, tmp_path):
    inside = tmp_path / "folder" / "deep" / "file"
    inside.parent.mkdir(parents=True)
    inside.write_text("content")
    readable = (tmp_path / "folder", tmp_path / "missing")
    assert sent(run("files", [inside, inside, tmp_path / "new"], readable))["inside"] == "done"


def test_threads_can_be_started(run):
    assert run("start_thread") == [({"thread": "done"}, b"")]


def test_a_kernel_without_a_means_is_told(monkeypatch, tmp_path):
    """In a process of its own, which is confined for good."""
    code = (
        "from pathlib import Path\n"
        "from d2defense.isolation import Limits, landlock, seccomp\n"
        "from d2defense.isolation.confinement import confine\n"
        "from d2defense.isolation.errors import ProtectionError\n"
        "def refuse(*arguments, **keywords):\n"
        "    raise ProtectionError(38, 'Function not implemented')\n"
        "landlock.restrict = refuse\n"
        "record = confine([Path('/')], Limits())\n"
        "print(record['files'], record['missing'], record['system_calls'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.startswith("None ['Function not implemented'"), finished.stderr


def test_the_version_of_landlock_is_the_kernels(protections):
    version = ctypes.CDLL(None).syscall(444, None, 0, 1)  # of landlock_create_ruleset
    if version < 1:
        assert protections["files"] is None
        with pytest.raises(ProtectionError, match="landlock"):
            landlock.version()
    else:
        assert landlock.version() == version
        assert protections["files"] == f"landlock {version}"


@pytest.mark.skipif(not is_linux() or os.geteuid() != 0, reason="needs root, to become another")
def test_no_privileges_are_needed(protections):
    nobody = pwd.getpwnam("nobody")
    code = (
        "import ctypes, json, os, socket, sys\n"
        "from d2defense.isolation import Limits\n"
        "from d2defense.isolation.confinement import confine\n"
        "from d2defense.isolation.namespaces import ProcessNamespaces, enter\n"
        f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
        # As after the start of a program; otherwise /proc/self belongs to root.
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        "pid, namespaces = ProcessNamespaces(enter(lambda: None)).fork()\n"
        "if pid:\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "print(json.dumps(confine([], Limits(), namespaces=namespaces)))\n"
        "try:\n"
        "    socket.socket()\n"
        "except PermissionError:\n"
        "    print('refused', flush=True)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    record, refused = finished.stdout.splitlines()
    assert refused == "refused", finished.stderr
    assert json.loads(record) == protections
