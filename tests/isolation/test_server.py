# SPDX-License-Identifier: Apache-2.0
"""What a confined process can send, and how its end is told."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from d2defense.isolation import ChildFailedError, Server, ServerLostError, shared_server


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # it ended since
        return False


def children_of(pid: int) -> list[int]:
    """All processes below one; in namespaces of their own they call themselves by other numbers."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_give_way_to_those_that_they_wait_for_unless_told_otherwise(
    monkeypatch, given, policy
):
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    with contextlib.closing(Server()) as server:
        content = Path(f"/proc/{server.pid}/environ").read_bytes()
    variables = dict(each.split(b"=", 1) for each in content.split(b"\0") if b"=" in each)
    assert variables[b"OMP_WAIT_POLICY"] == policy.encode()
    assert b"OMP_PROC_BIND" not in variables


def test_arguments_go_in_and_messages_come_out_of_a_fresh_process(run):
    argument = {"text": "\u202e", "list": [1, None]}
    (first, blob), (second, _) = run("echo", argument)[0], run("echo", argument)[0]
    assert first["argument"] == argument
    assert blob == b"\x00\xff"
    # What a run leaves behind in memory is gone for the next one.
    assert (first["seen"], second["seen"]) == (1, 1)


def test_modules_are_imported_and_warmed_up_once(run):
    assert run("loaded") == [({"preloaded": True}, b"")]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("segfault", r"ended by SIGSEGV"),
        ("abort", r"ended by SIGABRT: the last words"),
        ("raise_error", r"ended with code 1: RuntimeError: a bad day"),
        ("no_such_function", r"ended with code 1: AttributeError"),
    ],
)
def test_a_crash_is_told_in_one_line(run, task, reason):
    with pytest.raises(ChildFailedError, match=reason) as caught:
        run(task)
    assert "\n" not in str(caught.value)
    assert run("echo", 1)  # and harms nobody else


def test_a_process_that_ends_early_has_sent_what_it_has_sent(run):
    assert run("leave") == []


def test_a_hanging_process_is_killed(run):
    began = time.monotonic()
    with pytest.raises(ChildFailedError, match=r"exceeded the time limit of 0\.3 s"):
        run("hang", seconds=0.3)
    assert time.monotonic() - began < 10


def test_allocations_beyond_the_memory_limit_fail(run):
    limit = 2 << 30
    assert run("allocate", 64 << 20, memory_bytes=limit)[0][0] == {"allocated": 64 << 20}
    assert run("allocate", 3 << 30, memory_bytes=limit)[0][0] == {"refused": 3 << 30}


def test_a_process_that_takes_too_much_memory_otherwise_is_killed(run):
    with pytest.raises(ChildFailedError, match="exceeded the memory limit of 256 MiB"):
        run("share", 2 << 30, memory_bytes=256 << 20)


@pytest.mark.parametrize(
    "sent",
    [
        "ff" * 12,  # a message of more bytes than are ever read
        "00000001" + "00" * 8 + "ff",  # no UTF-8
        "00000002" + "00" * 8 + "5b5d",  # a JSON list
        "00000009" + "00" * 8 + "7b",  # cut off
        "00",
    ],
)
def test_nonsense_is_refused(run, sent):
    with pytest.raises(ChildFailedError, match="sent nonsense"):
        run("nonsense", sent)


def test_what_it_prints_cannot_fill_memory_or_block_it(run):
    assert run("flood", seconds=60.0)[-1][0] == {"done": True}


def test_runs_go_side_by_side(run):
    began = time.monotonic()

    def hang() -> None:
        with pytest.raises(ChildFailedError):
            run("hang", seconds=1.0)

    threads = [threading.Thread(target=hang) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert run("echo", 1)
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 4


def test_a_cancelled_run_leaves_no_process(server):
    server.protections()  # the server has started
    before = set(children_of(server.pid))
    run = server.start("isolated_tasks:hang", None)
    pids: set[int] = set()

    def on_message(content, blob):
        pids.update(set(children_of(server.pid)) - before)
        run.cancel()

    with pytest.raises(ServerLostError):
        run.wait(on_message)
    assert pids
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_killed_server_takes_its_processes_along_and_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text(
        "import time\ndef wait(argument, channel):\n    time.sleep(600)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    doomed = shared_server(["endless"])
    assert shared_server(["endless"]) is doomed
    run = doomed.start("endless:wait", None)
    os.kill(doomed.pid, signal.SIGKILL)
    with pytest.raises(ServerLostError):
        run.wait(lambda content, blob: None)
    doomed._process.wait()
    with pytest.raises(ServerLostError):
        doomed.start("endless:wait", None)
    other = shared_server(["endless"])
    assert other is not doomed
    other.close()


def test_a_server_whose_imports_fail_says_so(capfd):
    server = Server(["no_such_module_at_all"])
    with pytest.raises(ServerLostError):
        server.start("json:dumps", 1)
    server.close()
    assert "no_such_module_at_all" in capfd.readouterr().err


def test_processes_end_with_the_caller(tmp_path):
    """Also when that is killed and has no chance to clean up."""
    import subprocess

    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "def sleep(argument, channel):\n"
        "    channel.send({'sleeps': True})\n"
        "    time.sleep(600)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from d2defense.isolation import Server\n"
        "server = Server()\n"
        "run = server.start('slow:sleep', None)\n"
        "run.wait(lambda content, blob: print(server.pid, flush=True))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server = int(caller.stdout.readline())
    pids = [server, *children_of(server)]
    assert len(pids) > 1
    assert all(map(is_alive, pids))
    caller.kill()
    caller.wait()
    caller.stdout.close()
    wait_until(lambda: not any(map(is_alive, pids)))
