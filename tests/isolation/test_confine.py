# SPDX-License-Identifier: Apache-2.0
"""What a confined process cannot do."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys

import pytest

from d2defense.isolation import landlock
from d2defense.isolation.errors import ProtectionError
from d2defense.isolation.system import is_linux

REFUSED = {"Operation not permitted", "Permission denied", "Network is unreachable"}


@pytest.fixture(scope="module")
def protections(server):
    """What the server says of the means that this system offers."""
    run = server.start("isolated_tasks:leave", None)
    run.wait(lambda content, blob: None)
    return run.isolation


def sent(messages) -> dict:
    return {key: value for content, _ in messages for key, value in content.items()}


def test_the_record_names_every_means(protections):
    assert protections["mode"] == "process"
    assert protections["memory_limit_bytes"] == 8 << 30
    assert protections["time_limit_seconds"] == 3600
    for name in ("network", "files", "system_calls"):
        # Whatever a system lacks is said.
        assert protections[name] or protections["missing"]


def test_no_network(run, protections):
    if protections["network"] is None:
        pytest.skip(f"this system offers none: {protections['missing']}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outcome = sent(run("network", listener.getsockname()[1]))
    assert outcome["tcp"] in REFUSED
    if protections["system_calls"]:
        assert {outcome["udp"], outcome["unix"]} <= REFUSED | {"done"}
        assert outcome["udp"] in REFUSED


def test_only_the_named_files_can_be_read_and_none_written(run, protections, tmp_path):
    if protections["files"] is None:
        pytest.skip(f"this system offers none: {protections['missing']}")
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for path in (inside, outside):
        path.write_text("content")
    outcome = sent(run("files", [inside, outside, tmp_path / "new"], (inside,)))
    assert outcome.pop("inside") == "done"
    assert outcome.pop("null") == "done"
    assert set(outcome.values()) <= REFUSED, outcome
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]
    assert inside.read_text() == "content"


def test_a_named_folder_can_be_read_with_what_is_below_it(run, tmp_path):
    inside = tmp_path / "folder" / "deep" / "file"
    inside.parent.mkdir(parents=True)
    inside.write_text("content")
    readable = (tmp_path / "folder", tmp_path / "missing")
    assert sent(run("files", [inside, inside, tmp_path / "new"], readable))["inside"] == "done"


def test_no_other_programs_or_processes_but_threads(run, protections):
    if protections["system_calls"] is None:
        pytest.skip(f"this system offers none: {protections['missing']}")
    outcome = sent(run("processes", os.getpid()))
    assert outcome.pop("thread") == "done"
    assert set(outcome.values()) <= REFUSED, outcome


def test_a_kernel_without_a_means_is_told(monkeypatch, tmp_path):
    """In a process of its own, which is confined for good."""
    code = (
        "from pathlib import Path\n"
        "from d2defense.isolation import Limits, landlock, seccomp\n"
        "from d2defense.isolation.confine import confine\n"
        "from d2defense.isolation.errors import ProtectionError\n"
        "def refuse(*arguments, **keywords):\n"
        "    raise ProtectionError(38, 'Function not implemented')\n"
        "landlock.restrict = refuse\n"
        "record = confine([Path('/')], Limits())\n"
        "print(record['files'], record['missing'], record['system_calls'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.startswith("None ['Function not implemented'"), finished.stderr


def test_landlock_is_version_1_at_least():
    try:
        assert landlock.version() >= 1
    except ProtectionError as error:
        assert error.strerror.startswith("landlock")


@pytest.mark.skipif(not is_linux() or os.geteuid() != 0, reason="needs root, to become another")
def test_no_privileges_are_needed(protections):
    nobody = pwd.getpwnam("nobody")
    means = [name for name in ("files", "system_calls", "network") if protections[name]]
    code = (
        "import os, socket\n"
        "from d2defense.isolation import Limits\n"
        "from d2defense.isolation.confine import confine\n"
        f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
        "record = confine([], Limits())\n"
        f"assert all(record[name] for name in {means}), record\n"
        "try:\n"
        "    socket.socket()\n"
        "except PermissionError:\n"
        "    print('refused')\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout == "refused\n", finished.stderr
