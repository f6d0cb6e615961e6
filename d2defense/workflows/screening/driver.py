# SPDX-License-Identifier: Apache-2.0
"""The trusted side of a screening: it writes what the confined process says, line by line."""

from __future__ import annotations

import csv
import heapq
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2defense.files import open_whole, write_json
from d2defense.isolation import ChildFailedError, Limits, shared_server
from d2defense.report.results import is_png
from d2defense.report.screening import write_screening_page
from d2defense.text import shorten, table_cell

from .task import ERROR, SUSPICIOUS, UNSUSPICIOUS, ScreenTask, run_task

logger = logging.getLogger(__name__)

LINES_FILE = "images.jsonl"
TABLE_FILE = "images.csv"
SUMMARY_FILE = "summary.json"
PAGE_FILE = "report.html"
# Images that the page shows; all are in the other files.
SHOWN = 100
# What reading a value of another form raises; OverflowError: an integer that no float holds.
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError)
_MAX_PICTURE = 1 << 20
_MAX_PLACES = 10_000
_COLUMNS = (
    "image",
    "frame",
    "verdict",
    "score",
    "threshold",
    "p_value",
    "passes",
    "places",
    "reason",
)


@dataclass
class ScreenSummary:
    """What a screening came to.

    Attributes:
        counts: images by verdict.
        fitted: method, rate, number of clean images, threshold.
        error: why it ended before all images were screened; "" if it did not.
    """

    counts: Counter[str] = field(default_factory=Counter)
    fitted: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def exit_code(self) -> int:
        """2: something could not be screened; 3: there was nothing; 1: an image is suspicious."""
        if self.error or self.counts[ERROR]:
            return 2
        if not self.counts.total():
            return 3
        return 1 if self.counts[SUSPICIOUS] else 0


def screen_images(
    task: ScreenTask, output_dir: Path, limits: Limits | None = None, confined: bool = True
) -> ScreenSummary:
    """Screen images and write ``images.jsonl``, ``images.csv``, ``summary.json``, ``report.html``.

    The memory that it takes does not grow with the number of images.

    Args:
        task: checkpoint, images and settings.
        output_dir: of the files.
        limits: of the confined process; the defaults, without a time limit, if None.
        confined: open the checkpoint in a confined process; else in this one.

    Raises:
        OSError: the folder cannot be written to.
    """
    output_dir = Path(output_dir)
    with ExitStack() as stack:
        # As lines are known they are there to be read; only the table waits for the end.
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in (TABLE_FILE, SUMMARY_FILE, PAGE_FILE):
            # A screening that is cut short must not leave what was said of other images.
            (output_dir / name).unlink(missing_ok=True)
        lines = stack.enter_context(open(output_dir / LINES_FILE, "w", encoding="utf-8"))
        table = stack.enter_context(open_whole(output_dir / TABLE_FILE, "w"))
        inbox = _RecordInbox(lines, table)
        if confined:
            _run_confined(task, inbox, limits or Limits(seconds=None))
        else:
            run_task(task, inbox)
    summary = inbox.summary
    if not (inbox.is_done or summary.error):
        summary.error = "its process ended before all images were screened"
    content = {
        **summary.fitted,
        "images": summary.counts.total(),
        "suspicious": summary.counts[SUSPICIOUS],
        "unsuspicious": summary.counts[UNSUSPICIOUS],
        "unreadable": summary.counts[ERROR],
        "error": summary.error or None,
        "exit_code": summary.exit_code,
    }
    write_json(output_dir / SUMMARY_FILE, content)
    write_screening_page(output_dir / PAGE_FILE, content, inbox.shown())
    return summary


def _run_confined(task: ScreenTask, inbox: _RecordInbox, limits: Limits) -> None:
    from ..scan.confined import uses_gpu

    server = shared_server((f"{__package__}.task",))
    run = server.start(
        f"{__package__}.task:main", task, task.files, limits, gpu=uses_gpu(task.device)
    )
    try:
        run.wait(inbox)
    except ChildFailedError as error:
        inbox.summary.error = shorten(str(error), 600)


class _RecordInbox:
    """Takes what a screening says, none of it at its word, and writes it down."""

    def __init__(self, lines: Any, table: Any) -> None:
        self.summary = ScreenSummary()
        self.is_done = False
        self._lines = lines
        self._table = csv.DictWriter(table, _COLUMNS, extrasaction="ignore")
        self._table.writeheader()
        self._shown: list[tuple[float, int, dict[str, Any], bytes]] = []

    def __call__(self, content: Mapping[str, Any], blob: bytes) -> None:
        if "record" in content:
            record = checked(content["record"])
            if record is None:
                self.summary.error = "its process sent an invalid record"
            elif not self.is_done:
                self._take(record, blob)
        elif "fitted" in content:
            self._take_fitted(content["fitted"])
        elif "fatal" in content:
            self.summary.error = shorten(str(content["fatal"]), 600)
        elif "done" in content:
            self.is_done = True

    def shown(self) -> list[tuple[dict[str, Any], bytes]]:
        """The most suspicious images with their pictures, the most suspicious first."""
        return [(record, picture) for _, _, record, picture in sorted(self._shown, reverse=True)]

    def _take(self, record: dict[str, Any], blob: bytes) -> None:
        verdict = record["verdict"]
        self.summary.counts[verdict] += 1
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")
        self._lines.flush()
        row = record | {"places": sum(each["suspicious"] for each in record.get("places", ()))}
        self._table.writerow(
            {key: table_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()}
        )
        if verdict == ERROR:
            logger.warning("%s: %s", record["image"], record["reason"])
        elif verdict == SUSPICIOUS:
            picture = blob if is_png(blob) and len(blob) <= _MAX_PICTURE else b""
            entry = (record["score"], -self.summary.counts.total(), record, picture)
            heapq.heappush(self._shown, entry)
            if len(self._shown) > SHOWN:
                heapq.heappop(self._shown)

    def _take_fitted(self, fitted: Any) -> None:
        try:
            left_out = [_text(line) for line in fitted["left_out"]]
            numbers = ("false_alarm_rate", "clean_images", "threshold", "seconds")
            self.summary.fitted = {
                "method": _text(fitted["method"]),
                **{key: _number(fitted[key]) for key in numbers},
            }
        except _MALFORMED:
            self.summary.error = "its process sent an invalid description of the fit"
            return
        for line in left_out:
            logger.warning("clean image left out: %s", line)


def checked(record: Any) -> dict[str, Any] | None:
    """A record of the known form with nothing beside it; None if it is none."""
    try:
        verdict = record["verdict"]
        place = {"image": _text(record["image"]), "frame": _count(record["frame"])}
        if verdict == ERROR:
            return {**place, "verdict": verdict, "reason": _text(record["reason"])}
        if verdict not in (SUSPICIOUS, UNSUSPICIOUS):
            return None
        numbers = ("score", "threshold", "p_value", "passes", "seconds")
        places, detections = record["places"], record["detections"]
        if max(len(places), len(detections)) > _MAX_PLACES:
            return None
        return {
            **place,
            "verdict": verdict,
            **{key: _number(record[key]) for key in numbers},
            "places": [
                {
                    "box": _box(each["box"]),
                    "score": _number(each["score"]),
                    "suspicious": bool(each["suspicious"]),
                }
                for each in places
            ],
            "detections": [
                {
                    "box": _box(each["box"]),
                    "class": int(_number(each["class"])),
                    "score": _number(each["score"]),
                }
                for each in detections
            ],
        }
    except _MALFORMED:
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return shorten(value, 600)


def _count(value: Any) -> int | None:
    return None if value is None else int(_number(value))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("no number")
    return value


def _box(value: Any) -> list[float]:
    left, top, right, bottom = map(_number, value)
    return [left, top, right, bottom]
