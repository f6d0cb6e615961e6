# SPDX-License-Identifier: Apache-2.0
"""Where the checkpoints of a scan are scanned: here, in confined processes, on a cluster."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch

from d2defense.detection.survey import Progress
from d2defense.isolation import Run, Server, ServerLostError, shared_server

from .checkpoint import run_task
from .confined import preload, scan_confined
from .finished import Executor, Finished, TaskProgress, failed
from .options import NONE, RunOptions
from .task import ScanTask

logger = logging.getLogger(__name__)

# The server dies only of what is done to it from outside, such as by the kernel's memory killer.
_ATTEMPTS = 3


def make_executor(options: RunOptions) -> Executor:
    """The executor that the options ask for; what takes time to start is started.

    Raises:
        UsageError: Ray is asked for and not installed, or its cluster cannot be reached.
    """
    if options.ray_address is not None:
        from .on_ray import RayExecutor

        return RayExecutor(options)
    if options.isolation == NONE:
        return run_here
    return ProcessExecutor(options)


def run_here(tasks: Iterable[ScanTask], progress: TaskProgress) -> Iterator[Finished]:
    """Scan one after another in this process, unprotected."""
    for task in tasks:
        yield Finished(task, run_task(task, partial(progress, task)), {"mode": NONE})


class ProcessExecutor:
    """Scans each checkpoint in a confined process, several at once.

    Args:
        options: of the scan.
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._runs: set[Run] = set()
        self._is_closed = False
        self._server()  # imports while the caller reads its images

    def __call__(self, tasks: Iterable[ScanTask], progress: TaskProgress) -> Iterator[Finished]:
        """See :class:`Executor`."""
        events: queue.SimpleQueue[tuple[int, ScanTask, Finished | float]] = queue.SimpleQueue()
        free = deque(range(self._options.workers))
        remaining = iter(tasks)
        prepared: deque[ScanTask] = deque()

        def prepare() -> bool:
            task = next(remaining, None)
            if task is not None:
                prepared.append(task)
            return task is not None

        def start() -> None:
            arguments = (free.popleft(), prepared.popleft(), events)
            threading.Thread(target=self._work, args=arguments, daemon=True).start()

        try:
            while True:
                while free and (prepared or prepare()):
                    start()
                if len(free) == self._options.workers:
                    return
                # The next ones are hashed while these compute, so that no worker waits for that.
                while len(prepared) < self._options.workers and events.empty() and prepare():
                    pass
                slot, task, finished = events.get()
                if not isinstance(finished, Finished):
                    progress(task, finished)
                else:
                    free.append(slot)
                    if prepared:
                        start()
                    yield finished
        finally:
            with self._lock:
                self._is_closed = True
                runs = set(self._runs)
            for run in runs:
                run.cancel()

    def _work(self, slot: int, task: ScanTask, events: queue.SimpleQueue) -> None:
        try:
            finished = self._scan(task, slot, lambda share: events.put((slot, task, share)))
        except Exception as error:  # without an event the scan would wait for ever
            logger.exception("%s: the scan failed", task.name)
            finished = failed(task, f"the scan failed: {type(error).__name__}: {error}")
        events.put((slot, task, finished))

    def _scan(self, task: ScanTask, slot: int, on_progress: Progress) -> Finished:
        placed = place(task, slot, self._options, _num_cpus(), torch.get_num_threads())
        reason = ""
        for _ in range(_ATTEMPTS):
            run: Run | None = None

            def on_start(started: Run) -> None:
                nonlocal run
                run = started
                with self._lock:
                    self._runs.add(started)
                    is_late = self._is_closed
                if is_late:
                    started.cancel()

            try:
                scanned, isolation = scan_confined(
                    placed,
                    self._server(),
                    self._options.limits,
                    on_progress,
                    on_start,
                    self._options.require_isolation,
                )
                return Finished(task, scanned, isolation)
            except ServerLostError as error:
                reason = str(error)
                if self._is_closed:
                    break
            finally:
                with self._lock:
                    self._runs.discard(run)
        return failed(task, reason)

    def _server(self) -> Server:
        with self._lock:
            return shared_server(preload())


def place(task: ScanTask, slot: int, options: RunOptions, cpus: int, threads: int) -> ScanTask:
    """The task with its share of the machine: a GPU, or a part of the CPU's threads.

    Args:
        task: what to scan.
        slot: number of the worker that scans it, from 0 on.
        options: of the scan.
        cpus: CPUs to share out among the workers.
        threads: with so many a process alone would compute.
    """
    if options.num_gpus:
        return replace(task, device=f"cuda:{slot % options.num_gpus}")
    return replace(task, threads=min(max(1, cpus // options.workers), threads))


def _num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
