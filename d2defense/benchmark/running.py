# SPDX-License-Identifier: Apache-2.0
"""Methods on the detectors of a zoo, a cell at a time: what is there is not measured again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

import d2defense
from d2defense.checkpoint import CheckpointSource, file_sha256, find_checkpoints
from d2defense.registry import TASK_REGISTRY
from d2defense.study.pool import open_pool
from d2defense.study.results import FAILED, ResultRow, ResultStore
from d2defense.study.workplace import Workplace
from d2defense.text import printable

from .tasks.base import TaskOptions
from .zoo.index import ZooDetector, find_detectors


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        measured: cells that it measured.
        kept: cells that were there.
        failed: one line for each cell without a measurement.
    """

    measured: int
    kept: int
    failed: tuple[str, ...]


def run_benchmark(
    task_name: str,
    methods: Sequence[str],
    zoos: Sequence[Path],
    store: ResultStore,
    options: TaskOptions,
    pattern: str = "",
    limit: int | None = None,
    workers: int = 1,
    ray_address: str | None = None,
) -> RunSummary:
    """Run methods on detectors, and keep a row a measurement.

    A method that fails leaves a row with the reason, and the rest goes on; it is tried again by
    the next run. One worker keeps each cell as it is measured, several each detector.

    Args:
        task_name: name in ``TASK_REGISTRY``.
        methods: names in the task's registry; all of it if empty.
        zoos: folders of detectors.
        store: of the results.
        options: of every method.
        pattern: only detectors whose name matches it.
        limit: only the first so many of these.
        workers: detectors at a time, each in a process of one thread; 1 works in this one.
        ray_address: of a Ray cluster that works instead; its machines share zoo and datasets.

    Raises:
        ValueError: no such task or method, or no detector.
        UsageError: Ray is not installed, or its cluster cannot be reached.
    """
    task = TASK_REGISTRY.get(task_name)()
    names = list(methods) or list(task.methods.choices())
    for name in names:
        task.methods.get(name)
    detectors = [each for zoo in zoos for each in find_detectors(zoo) if task.applies(each)]
    if pattern:
        detectors = [each for each in detectors if fnmatchcase(each.name, pattern)]
    detectors = detectors[:limit]
    if not detectors:
        raise ValueError("no detector to run on")
    known, conditions = store.cells(), task.conditions(options)
    work: list[tuple[ZooDetector, list[ResultRow]]] = []
    for detector in detectors:
        sha256 = _sha256(detector)
        rows = [_row(task_name, name, detector, sha256, options, conditions) for name in names]
        if missing := [row for row in rows if row.cell not in known]:
            work.append((detector, missing))
    total = len(detectors) * len(names)
    kept = total - sum(len(rows) for _, rows in work)
    measured, failed = 0, []
    if ray_address is not None or workers > 1:
        measuring = _measure_elsewhere(work, options, workers, ray_address)
    else:
        measuring = (cell for each in work for cell in measure_detector(*each, options))
    with tqdm(total=total, initial=kept, unit="cell", disable=None) as bar:
        for rows in measuring:
            store.put(rows)
            first = rows[0]
            if first.metric == FAILED:
                failed.append(f"{first.method} on {first.detector}: {first.reason}")
                tqdm.write(f"failed: {failed[-1]}", file=sys.stderr)
            else:
                measured += 1
            bar.set_postfix_str(f"{first.detector} {first.method}", refresh=False)
            bar.update()
    return RunSummary(measured, kept, tuple(failed))


def measure_detector(
    detector: ZooDetector, rows: Sequence[ResultRow], options: TaskOptions
) -> Iterator[list[ResultRow]]:
    """Measure cells of one detector, which share what they can.

    Args:
        detector: of a zoo.
        rows: one a cell, without its measurement.
        options: of the run.

    Returns:
        The rows of one cell after another; of one that failed, a single row with the reason.
    """
    shared = None
    for row in rows:
        task = TASK_REGISTRY.get(row.task)()
        start = time.perf_counter()
        try:
            source = _source(detector)
            shared = shared or task.begin(detector, source, options)
            result = task.measure(row.method, detector, source, options, shared)
            seconds = time.perf_counter() - start if result.seconds is None else result.seconds
            row = replace(row, settings=dict(result.settings), needs=result.needs, seconds=seconds)
            measured = [replace(row, **each._asdict()) for each in result.measurements]
            if not measured:
                raise ValueError("it has measured nothing")
        except Exception as error:  # a method may fail in any way; the rest must go on
            measured = [_failed(row, error, time.perf_counter() - start)]
        yield measured


def _measure_elsewhere(
    work: Sequence[tuple[ZooDetector, list[ResultRow]]],
    options: TaskOptions,
    workers: int,
    ray_address: str | None,
) -> Iterator[list[ResultRow]]:
    """The rows of one cell after another, each detector's together, as workers finish them."""
    workplace = Workplace(options.work)
    with open_pool(workplace, workers, ray_address) as (pool, _):
        futures = {pool.submit(_measure_all, *each, options): each[1] for each in work}
        for future in as_completed(futures):
            try:
                yield from future.result()
            except Exception as error:  # of the worker: what others do must go on
                for row in futures[future]:
                    yield [_failed(row, error)]


def _measure_all(
    detector: ZooDetector, rows: Sequence[ResultRow], options: TaskOptions
) -> list[list[ResultRow]]:
    """What a worker does."""
    return list(measure_detector(detector, rows, options))


def _failed(row: ResultRow, error: Exception, seconds: float = 0.0) -> ResultRow:
    reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
    return replace(row, seconds=seconds, metric=FAILED, reason=reason)


def _row(
    task: str,
    method: str,
    detector: ZooDetector,
    sha256: str,
    options: TaskOptions,
    conditions: Mapping[str, Any],
) -> ResultRow:
    """A row without its measurement."""
    return ResultRow(
        task=task,
        method=method,
        metric="",
        value=None,
        detector=detector.name,
        sha256=sha256,
        conditions=conditions,
        dataset=options.images.name,
        fingerprint=options.images.fingerprint,
        images=len(options.images.records),
        budget=options.budget,
        seed=options.seed,
        version=d2defense.__version__,
    ).with_facts(detector.facts)


def _sha256(detector: ZooDetector) -> str:
    """Of the weights; "" where they cannot be read, which the method will say."""
    try:
        return file_sha256(_source(detector).weights)
    except (OSError, ValueError):
        return ""


def _source(detector: ZooDetector) -> CheckpointSource:
    """The files of a detector.

    Raises:
        CheckpointError: they cannot be used.
    """
    (source,) = find_checkpoints([detector.folder], only_final=True)
    if source.error:
        raise source.error
    return source
