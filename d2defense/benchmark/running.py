# SPDX-License-Identifier: Apache-2.0
"""Methods on the detectors of a zoo, a cell at a time: what is there is not measured again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

import d2defense
from d2defense.checkpoint import CheckpointSource, file_sha256, find_checkpoints
from d2defense.registry import TASK_REGISTRY
from d2defense.study.results import FAILED, ResultRow, ResultStore
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
) -> RunSummary:
    """Run methods on detectors, and keep a row a measurement.

    A method that fails leaves a row with the reason, and the rest goes on; it is tried again by
    the next run.

    Args:
        task_name: name in ``TASK_REGISTRY``.
        methods: names in the task's registry; all of it if empty.
        zoos: folders of detectors.
        store: of the results.
        options: of every method.
        pattern: only detectors whose name matches it.
        limit: only the first so many of these.

    Raises:
        ValueError: no such task or method, or no detector.
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
    known, kept, measured = store.cells(), 0, 0
    conditions = task.conditions(options)
    failed: list[str] = []
    with tqdm(total=len(detectors) * len(names), unit="cell", disable=None) as bar:
        for detector in detectors:
            shared, sha256 = None, _sha256(detector)
            for name in names:
                bar.set_postfix_str(f"{detector.name} {name}", refresh=False)
                row = replace(
                    _row(task_name, name, detector, sha256, options), conditions=conditions
                )
                if row.cell in known:
                    kept += 1
                    bar.update()
                    continue
                start = time.perf_counter()
                try:
                    source = _source(detector)
                    shared = shared or task.begin(detector, source, options)
                    result = task.measure(name, detector, source, options, shared)
                except Exception as error:  # a method may fail in any way; the rest must go on
                    reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
                    failed.append(f"{name} on {detector.name}: {reason}")
                    tqdm.write(f"failed: {failed[-1]}", file=sys.stderr)
                    seconds = time.perf_counter() - start
                    store.put([replace(row, seconds=seconds, metric=FAILED, reason=reason)])
                else:
                    measured += 1
                    seconds = time.perf_counter() - start
                    store.put(
                        replace(
                            row,
                            **each._asdict(),
                            settings=dict(result.settings),
                            needs=result.needs,
                            seconds=seconds if result.seconds is None else result.seconds,
                        )
                        for each in result.measurements
                    )
                bar.update()
    return RunSummary(measured, kept, tuple(failed))


def _row(
    task: str, method: str, detector: ZooDetector, sha256: str, options: TaskOptions
) -> ResultRow:
    """A row without its measurement."""
    return ResultRow(
        task=task,
        method=method,
        metric="",
        value=None,
        detector=detector.name,
        sha256=sha256,
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
