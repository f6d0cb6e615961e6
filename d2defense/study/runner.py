# SPDX-License-Identifier: Apache-2.0
"""Doing the open steps of a study, several at a time."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from .pool import open_pool
from .steps import Step, StepResults, dependents, open_steps
from .workplace import Workplace


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
        open_pool(workplace, workers, ray_address) as (pool, room),
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


def _work(step: Step, given: dict[str, Any], workplace: Workplace) -> tuple[dict[str, Any], float]:
    """What a worker does: the step's action."""
    module, _, name = step.action.rpartition(":")
    print(f"--- {step.name}", flush=True)
    start = time.perf_counter()
    actions = importlib.import_module(module or f"{__package__}.actions")
    action: Callable[..., dict[str, Any]] = getattr(actions, name)
    return action(workplace, **step.arguments, **step.unkeyed, **given), time.perf_counter() - start
