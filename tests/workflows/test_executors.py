# SPDX-License-Identifier: Apache-2.0
"""Several workers do not wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from d2defense.cli import scan as command
from d2defense.report.results import error_result
from d2defense.workflows.scan import RunOptions, confined, executors
from d2defense.workflows.scan.checkpoint import Scanned
from d2defense.workflows.scan.executors import ProcessExecutor
from d2defense.workflows.scan.finished import Finished
from d2defense.workflows.scan.task import ScanTask

PATIENCE = 20.0


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.setattr(executors, "shared_server", lambda preload: None)


def task(number: int) -> ScanTask:
    images = SimpleNamespace(records=[], further=())
    path = Path(f"zoo/{number}")
    return ScanTask(str(number), path, path / "w", path / "c", images, None, None)


def finished(of: ScanTask) -> Finished:
    return Finished(of, Scanned(error_result(of.name, "none")), {})


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_checkpoints_are_prepared_while_others_are_scanned(
    no_server, monkeypatch, workers
):
    """Each scan waits until the one after next of its worker is prepared."""
    prepared = [threading.Event() for _ in range(6)]

    def tasks():
        for number, event in enumerate(prepared):
            event.set()
            yield task(number)

    def scan(self, of, slot, on_progress):
        following = min(int(of.name) + workers, len(prepared) - 1)
        assert prepared[following].wait(PATIENCE)
        return finished(of)

    monkeypatch.setattr(ProcessExecutor, "_scan", scan)
    results = list(ProcessExecutor(RunOptions(workers=workers))(tasks(), lambda *_: None))
    assert sorted(each.task.name for each in results) == [str(i) for i in range(6)]
    assert not any(each.scanned.result["error"] != "none" for each in results)


def test_a_worker_goes_on_while_a_result_is_written(no_server, monkeypatch):
    prepared, started = threading.Event(), threading.Event()

    def tasks():
        yield task(0)
        prepared.set()
        yield task(1)

    def scan(self, of, slot, on_progress):
        assert prepared.wait(PATIENCE)
        if of.name == "1":
            started.set()
        return finished(of)

    monkeypatch.setattr(ProcessExecutor, "_scan", scan)
    results = ProcessExecutor(RunOptions())(tasks(), lambda *_: None)
    assert next(results).task.name == "0"
    assert started.wait(PATIENCE)
    assert next(results).task.name == "1"


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        (["zoo", "--output", "out"], True),
        (["--help"], False),
        (["zoo", "--isolation", "none"], False),
        (["zoo", "--import", "mine.py"], False),
    ],
)
def test_the_server_that_a_scan_needs_starts_before_this_process_imports(
    monkeypatch, arguments, starts
):
    started = []
    monkeypatch.setattr("d2defense.isolation.shared_server", started.append)
    command.begin(arguments)
    assert started == ([confined.preload()] if starts else [])
