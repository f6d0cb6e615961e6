# SPDX-License-Identifier: Apache-2.0
"""Doing the open steps of a study, several at a time."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from d2defense.user_modules import import_modules, imported_modules

from .steps import Step, StepResults, dependents, open_steps
from .workplace import Workplace, end_with

LOG_FILE = "log.txt"


def run_steps(
    wanted: Sequence[Step],
    workplace: Workplace,
    workers: int = 1,
    ray_address: str | None = None,
) -> dict[str, str]:
    """Do what is open of the wanted steps; each result is kept as soon as it is there.

    A step that fails takes those that need it with it; the others go on.

    Args:
        wanted: the steps whose results matter.
        workplace: where.
        workers: processes that work at a time.
        ray_address: of a Ray cluster that does the work instead of processes of this machine; its
            machines share the workplace's folder.

    Returns:
        One line for each step that failed or could not be begun, by its name.

    Raises:
        UsageError: Ray is not installed, or its cluster cannot be reached.
    """
    results = StepResults(workplace.folder)
    waiting = open_steps(wanted, results)
    failed: dict[str, str] = {}
    if not waiting:
        return failed
    unfinished = {step.name for step in waiting}
    running: dict[Future, Step] = {}
    with (
        _pool(workplace, workers, ray_address) as (pool, room),
        tqdm(total=len(waiting), desc="study", unit="step", disable=None, smoothing=0) as bar,
    ):
        while unfinished:
            for step in _ready(waiting, unfinished, room - len(running)):
                waiting.remove(step)
                given = {name: results.get(needed) for name, needed in step.needs.items()}
                running[pool.submit(_work, step, given, workplace)] = step
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                lost = _finish(step, future, results, waiting)
                for name, line in lost.items():
                    tqdm.write(f"failed: {name}: {line}", file=sys.stderr)
                failed |= lost
                waiting = [other for other in waiting if other.name not in lost]
                unfinished -= {step.name, *lost}
                bar.set_postfix_str(step.name, refresh=False)
                bar.update(max(1, len(lost)))
    return failed


def _ready(waiting: Sequence[Step], unfinished: set[str], room: int) -> list[Step]:
    """As many steps as there is room for, of those that need nothing unfinished."""
    ready = [
        step
        for step in waiting
        if not any(needed.name in unfinished for needed in step.needs.values())
    ]
    return ready[:room]


def _finish(
    step: Step, future: Future, results: StepResults, waiting: Sequence[Step]
) -> dict[str, str]:
    """Keep the result of a step that ended, or say what its failure takes with it."""
    try:
        result, seconds = future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:  # a step may fail in any way; the study must go on
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return {
            step.name: line,
            **{other.name: f"needs {step.name}" for other in dependents(step, waiting)},
        }
    results.put(step, result, seconds)
    return {}


@contextlib.contextmanager
def _pool(workplace: Workplace, workers: int, ray_address: str | None):
    """Worker processes that end with this one, however it ends; and how many steps they take."""
    if ray_address is not None:
        from .on_ray import RayPool

        with RayPool(ray_address, workplace.num_gpus) as cluster:
            yield cluster, max(workers, cluster.cpus)
        return
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _begin,
        (workplace, os.getpid(), imported_modules()),
    )
    try:
        yield pool, workers
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin(workplace: Workplace, parent: int, modules: Sequence[str]) -> None:
    """Called once in each worker."""
    end_with(parent)
    workplace.folder.mkdir(parents=True, exist_ok=True)
    # What libraries print would tear the progress bar; it is kept for whoever looks for a cause.
    log = os.open(workplace.folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Not earlier, for what they print when they are imported.
    import torch

    from d2defense.memory import keep_freed_memory

    import_modules(modules)
    torch.set_num_threads(workplace.threads)
    keep_freed_memory()


def _work(step: Step, given: dict[str, Any], workplace: Workplace) -> tuple[dict[str, Any], float]:
    """What a worker does: the step's action."""
    module, _, name = step.action.rpartition(":")
    print(f"--- {step.name}", flush=True)
    start = time.perf_counter()
    actions = importlib.import_module(module or f"{__package__}.actions")
    action: Callable[..., dict[str, Any]] = getattr(actions, name)
    return action(workplace, **step.arguments, **step.unkeyed, **given), time.perf_counter() - start
