# SPDX-License-Identifier: Apache-2.0
"""A confined process reaches no other one, whichever way it tries."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from d2defense.isolation import Server
from d2defense.isolation.seccomp import ARCHITECTURES
from d2defense.isolation.system import is_linux

sys.path.insert(0, str(Path(__file__).parent))
import reach

sys.path.pop(0)

pytestmark = pytest.mark.skipif(
    not is_linux() or platform.machine() not in ARCHITECTURES, reason="needs a filter of calls"
)
#: How the filter of system calls says no.
FILTERED = {"EPERM", "ENOSYS"}
#: How a file says no that cannot be opened, or is not there in a namespace; and who has to do with
#: files.
HIDDEN = {"EACCES", "EROFS", "ENOENT", "ENXIO"}
BY_FILE = ("mem", "oom_score_adj", "coredump_filter", "timerslack_ns", "pidfd_send_signal")
BY_FILE += ("shared memory", "read ", "write ", "terminal")

# Modules that take means away from the processes of a server which loads them.
WITHOUT = {
    "without_landlock": """
from d2defense.isolation import landlock
from d2defense.isolation.errors import ProtectionError
def refuse(*arguments):
    raise ProtectionError(38, "landlock: Function not implemented")
landlock.restrict = refuse
""",
    "without_filter": """
import without_landlock
from d2defense.isolation import seccomp
seccomp.restrict = without_landlock.refuse
""",
}
ONLY_FILTER = """
import json, sys
from pathlib import Path
import reach, without_landlock
from d2defense.isolation import Limits, confinement
confinement.enter_others = lambda namespaces: None
confinement.confine([], Limits())
reach.{task}(json.loads(sys.argv[1]), reach.Printing())
"""
UNCONFINED = "import json, reach, sys; reach.reach(json.loads(sys.argv[1]), reach.Printing())"


def not_refused(outcome: dict[str, str]) -> dict[str, str]:
    """What was done, or failed for other reasons than a protection."""
    return {
        name: said
        for name, said in outcome.items()
        if said not in FILTERED and not (name.startswith(BY_FILE) and said in HIDDEN)
    }


class Victim:
    """A process that others try to reach.

    Attributes:
        about: how it can be reached.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, reach.__file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.about = json.loads(self._process.stdout.readline())

    def state(self) -> dict[str, Any]:
        """What it says of itself."""
        print(file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path)
    yield victim
    victim.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where confined processes find :mod:`reach` and :data:`WITHOUT`."""
    folder = tmp_path_factory.mktemp("without")
    for name, code in WITHOUT.items():
        (folder / f"{name}.py").write_text(code)
    return [str(folder), str(Path(__file__).parent)]


@pytest.fixture
def outcomes(folders: list[str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a task of :mod:`reach` in a server with modules loaded; all that it sent."""
    servers: list[Server] = []

    def outcomes(task: str, argument: Any, *modules: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*folders, *sys.path])
            servers.append(Server([*modules, "reach"]))
        sent: dict[str, Any] = {}
        readable = [Path(argument["locked"])] if argument else []
        run = servers[-1].start(f"reach:{task}", argument, readable)
        run.wait(lambda content, blob: sent.update(content))
        return {"isolation": run.isolation} | sent

    yield outcomes
    for server in servers:
        server.close()


def by_program(code: str, folders: list[str], argument: Any) -> dict[str, Any]:
    """What a program prints that a process of its own runs."""
    prefix = f"import sys; sys.path[:0] = {folders}\n"
    finished = subprocess.run(
        [sys.executable, "-c", prefix + code, json.dumps(argument)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    sent: dict[str, Any] = {}
    for line in finished.stdout.splitlines():
        sent |= json.loads(line)
    return sent


def test_an_unconfined_process_reaches_the_victim(victim, folders):
    """Otherwise the tests below would say nothing."""
    before = victim.state()
    outcome = by_program(UNCONFINED, folders, victim.about)
    assert {name for name in reach.CERTAIN if outcome[name] != "done"} == set()
    after = victim.state()
    unchanged = {name for name in before if before[name] == after[name]}
    assert unchanged <= {"memory", "traced"}, after


@pytest.mark.parametrize("modules", [(), ("without_landlock",)])
def test_no_way_leads_to_another_process(victim, outcomes, modules):
    before = victim.state()
    outcome = outcomes("reach", victim.about, *modules)
    isolation = outcome.pop("isolation")
    assert isolation["system_calls"] == "seccomp"
    assert (isolation["files"] is None) == bool(modules)
    assert set(outcome) == {name for name, _ in reach.ways(victim.about)}
    assert not_refused(outcome) == {}
    assert victim.state() == before


def test_the_filter_alone_keeps_from_every_other_process(victim, folders):
    before = victim.state()
    outcome = by_program(ONLY_FILTER.format(task="reach"), folders, victim.about)
    # Files can be opened here, and only to read.
    reached = {name: said for name, said in outcome.items() if said not in FILTERED}
    assert reached == {}
    assert victim.state() == before


def test_namespaces_alone_hide_every_other_process(victim, outcomes):
    before = victim.state()
    outcome = outcomes("look_around", victim.about, "without_filter")
    isolation = outcome["isolation"]
    if not {"pid", "ipc", "network", "mount"} <= set(isolation["namespaces"]):
        pytest.skip(f"this system offers none: {isolation['missing']}")
    assert isolation["system_calls"] is None
    assert outcome["pid"] == 1
    assert outcome["processes"] == [1]
    assert outcome["interfaces"] == ["lo"]
    for name in ("kill", "tgkill", "prlimit64", "sched_setaffinity", "pidfd_open", "ptrace"):
        assert outcome[name] == "ESRCH", name
    for name in ("System V shared memory", "System V semaphore", "System V message"):
        assert outcome[name] == "EINVAL", name
    assert outcome["POSIX message queue"] == "ENOENT"
    assert outcome["abstract Unix socket"] == "ECONNREFUSED"
    assert outcome["TCP"] == "ENETUNREACH"
    assert outcome["shared memory"] == "EROFS"
    state = victim.state()
    changed = {name for name in before if state[name] != before[name]}
    assert changed == set()


@pytest.mark.parametrize("alone", [False, True])
def test_no_more_rights_and_no_other_programs(outcomes, folders, alone):
    if alone:
        outcome = by_program(ONLY_FILTER.format(task="escape"), folders, None)
    else:
        outcome = outcomes("escape", None)
        outcome.pop("isolation")
        # Nothing, its output twice, its channel, and the folder that lists them.
        assert set(outcome["descriptors"]) <= {0, 1, 2, 3, 4}
    outcome.pop("descriptors")
    assert set(outcome) == {name for name, _ in reach.escapes()}
    readable = {f"read {path}" for path in ("/proc/kcore", "/etc/passwd")} if alone else set()
    assert not_refused(outcome).keys() <= readable
