# SPDX-License-Identifier: Apache-2.0
"""The scan of one checkpoint in a confined process, and what the caller takes from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from d2defense.detection.survey import Progress
from d2defense.devices import resolve_device
from d2defense.isolation import ChildFailedError, Limits, Run, Server
from d2defense.isolation.messages import MAX_BYTES, Channel
from d2defense.memory import keep_freed_memory
from d2defense.report.results import (
    FIGURE_FILES,
    SEARCH_FILES,
    error_result,
    is_png,
    validate_result,
)
from d2defense.text import shorten
from d2defense.user_modules import imported_modules

from .checkpoint import Scanned, run_task
from .task import ScanTask
from .twin import most_twin_bytes

logger = logging.getLogger(__name__)

_MAX_LOGGED = 100
_LEAST_SECONDS = 0.001
_LOG_WIDTH = 1000
# Bytes of one message of a twin's weights.
_PART = MAX_BYTES // 2


def preload() -> tuple[str, ...]:
    """What the server imports before it forks: this module, and those of one's own."""
    return (__name__, *imported_modules())


def warm_up_server() -> None:
    """Do once in the server what every scan would do anew: matplotlib's fonts and first figure."""
    from d2defense.report.figures import draw_histograms

    draw_histograms([0, 0.5, 1], {"a": [1, 1]}, "warm up")


class _LogToChannel(logging.Handler):
    """Sends log records to the caller, who shows them; this process has no terminal."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._channel.send({"log": record.getMessage()[:_LOG_WIDTH], "level": record.levelno})


def main(task: ScanTask, channel: Channel) -> None:
    """In the confined process: scan, and send progress, figures and the result."""
    keep_freed_memory()
    package = logging.getLogger("d2defense")
    package.handlers[:] = [_LogToChannel(channel)]
    package.propagate = False
    # What the caller shows of it is for the caller to say.
    package.setLevel(logging.INFO)
    scanned = run_task(task, lambda share: channel.send({"progress": share}))
    for name, content in scanned.figures.items():
        channel.send({"figure": name}, content)
    for start in range(0, len(scanned.twin), _PART):
        channel.send({"twin": start}, scanned.twin[start : start + _PART])
    channel.send({"result": scanned.result})


def uses_gpu(device: str | None) -> bool:
    """Whether a scan on ``device``, the configs' choice if None, may need a GPU of this machine."""
    return resolve_device(device or "cuda").startswith("cuda")


@dataclass
class _Inbox:
    """What one confined process has sent so far; none of it is taken at its word."""

    task: ScanTask
    on_progress: Progress
    result: dict[str, Any] | None = None
    num_logged: int = 0

    def __post_init__(self) -> None:
        self.figures: dict[str, bytes] = {}
        self.twin = bytearray()

    def __call__(self, content: dict[str, Any], blob: bytes) -> None:
        if "progress" in content:
            share = content["progress"]
            if isinstance(share, int | float) and 0 <= share <= 1:
                self.on_progress(share)
        elif "figure" in content:
            name = content["figure"]
            if isinstance(name, str) and name in (*FIGURE_FILES, *SEARCH_FILES) and is_png(blob):
                self.figures[name] = blob
        elif "twin" in content:
            if len(self.twin) + len(blob) <= most_twin_bytes(self.task.weights):
                self.twin += blob
        elif "log" in content and self.num_logged < _MAX_LOGGED:
            self.num_logged += 1
            level = content.get("level")
            level = level if level in (logging.ERROR, logging.WARNING) else logging.INFO
            logger.log(level, "%s: %s", self.task.name, shorten(content["log"], _LOG_WIDTH))
        elif "result" in content:
            self.result = content["result"]

    def scanned(self) -> Scanned:
        """The result, an error unless it is a valid one about this task."""
        if self.result is None:
            return self.error("its process ended without a result")
        try:
            validate_result(self.result)
        except ValueError as error:
            return self.error(f"its process sent an invalid result: {error}")
        if self.result["name"] != self.task.name:
            return self.error("its process sent the result of another checkpoint")
        return Scanned(self.result, self.figures, bytes(self.twin))

    def error(self, reason: str) -> Scanned:
        """An error result about this task."""
        message = f"{self.task.path}: {reason}"
        return Scanned(error_result(self.task.name, message, str(self.task.weights)))


def scan_confined(
    task: ScanTask,
    server: Server,
    limits: Limits,
    on_progress: Progress,
    on_start: Callable[[Run], None] = lambda run: None,
    complete: bool = False,
) -> tuple[Scanned, dict[str, Any]]:
    """Scan one checkpoint in a process of its own; whatever becomes of that is a result.

    Args:
        task: what to scan.
        server: to fork from, with :func:`preload` imported.
        limits: of memory and time.
        on_progress: told, in this thread, how much is done.
        on_start: gets the run, which can be cancelled from another thread.
        complete: do not begin where a protection is missing.

    Returns:
        The result and figures; the protections that were active.

    Raises:
        IncompleteProtectionError: a protection is missing, and ``complete`` is asked for.
        ServerLostError: the server ended, or the run was cancelled.
    """
    inbox = _Inbox(task, on_progress)
    start = time.monotonic()
    left = None
    if limits.seconds is not None:
        left = max(limits.seconds - task.spent_seconds, _LEAST_SECONDS)
    run = server.start(
        f"{__name__}:main",
        task,
        task.files,
        replace(limits, seconds=left),
        gpu=uses_gpu(task.device),
        complete=complete,
    )
    on_start(run)
    try:
        run.wait(inbox)
    except ChildFailedError as error:
        reason = str(error)
        if left is not None and time.monotonic() - start >= left:
            reason = f"exceeded the time limit of {limits.seconds:g} s"
        return inbox.error(reason), run.isolation or {}
    return inbox.scanned(), run.isolation or {}
