# SPDX-License-Identifier: Apache-2.0
"""What every way to carry out a scan takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from d2defense.report.results import error_result

from .checkpoint import Scanned
from .task import ScanTask

TaskProgress = Callable[[ScanTask, float], None]


@dataclass(frozen=True)
class Finished:
    """One checkpoint's scan is over.

    Attributes:
        task: what was asked for.
        scanned: result and figures.
        isolation: the protections that were active.
    """

    task: ScanTask
    scanned: Scanned
    isolation: dict[str, Any]


class Executor(Protocol):
    """Scans checkpoints; a generator, so that closing it ends what is under way."""

    def __call__(self, tasks: Iterable[ScanTask], progress: TaskProgress) -> Iterator[Finished]:
        """Scan all tasks, which are taken one by one as there is room for them.

        Args:
            tasks: what to scan.
            progress: called with a task, in this thread, and the share of it that is done.
        """
        ...


def failed(task: ScanTask, reason: str) -> Finished:
    """The end of a scan that yielded nothing, for a reason that lies outside of the checkpoint."""
    message = f"{task.path}: {reason}"
    return Finished(task, Scanned(error_result(task.name, message, str(task.weights))), {})
