# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: Markdown, CSV and one page, all from the same summaries."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2defense.files import write_text
from d2defense.registry import TASK_REGISTRY
from d2defense.report.html import write_page
from d2defense.text import DASH

from .results import FAILED, ResultRow, ResultStore
from .tables import GROUPINGS, Summary, grouped, summarise, truth_of
from .zoo.export import read_labels

MARKDOWN, PAGE, SUMMARIES, ROWS = "leaderboard.md", "leaderboard.html", "summaries.csv", "rows.csv"
# What the page filters by, with the words for it.
_FILTERS = {by: title for by, title in GROUPINGS.items() if by}


def write_leaderboard(
    results: Path, output: Path, labels: Path | None = None, sequestered_only: bool = False
) -> list[Path]:
    """Write the report of a folder of results.

    Args:
        results: the folder.
        output: folder that gets ``leaderboard.md``, ``leaderboard.html``, ``summaries.csv`` and
            ``rows.csv``.
        labels: of sequestered detectors (:func:`~.zoo.export.export_zoo`).
        sequestered_only: leave out detectors that something may have been tuned on.

    Returns:
        The files.

    Raises:
        ResultsError: the results cannot be read.
        ZooError: the labels cannot be read.
        ValueError: there are no rows.
    """
    rows = ResultStore(results).read()
    if labels is not None:
        known = read_labels(labels)
        rows = [row.labelled(known) for row in rows]
    if sequestered_only:
        rows = [row for row in rows if row.sequestered]
    rows = [row for row in rows if row.task in TASK_REGISTRY]
    if not rows:
        raise ValueError(f"{results}: there are no rows")
    summaries = summarise(rows)
    page = _page(rows, summaries)
    return [
        write_text(output / MARKDOWN, leaderboard_markdown(rows, summaries)),
        write_page(output / PAGE, "leaderboard.html.j2", "leaderboard.js", **page),
        write_text(output / SUMMARIES, _csv([summary.as_dict() for summary in summaries])),
        write_text(output / ROWS, _csv([row.as_dict() for row in rows])),
    ]


def leaderboard_markdown(rows: Sequence[ResultRow], summaries: Sequence[Summary]) -> str:
    """The tables of all tasks: one over all detectors, and one a grouping for what is ranked."""
    parts = ["# Leaderboard"]
    for task, of_task in grouped(rows, lambda row: row.task):
        of_summaries = [each for each in summaries if each.task == task]
        parts += [f"## {task}", TASK_REGISTRY.choices()[task], describe_detectors(of_task)]
        parts.append(_overall(of_summaries))
        for by, title in _FILTERS.items():
            parts += _grouped_tables(of_summaries, by, title)
        failures = grouped(
            [row for row in of_task if row.metric == FAILED], lambda row: (row.method, row.reason)
        )
        if failures:
            lines = [
                f"* `{method}` on {len(failed)}: {reason}" for (method, reason), failed in failures
            ]
            parts += ["What failed:", "\n".join(lines)]
    return "\n\n".join(filter(None, parts)) + "\n"


def describe_detectors(rows: Sequence[ResultRow]) -> str:
    """How many detectors of which truth the rows are of, in one sentence."""
    truths = Counter({(row.zoo, row.detector): truth_of(row) for row in rows}.values())
    words = ", ".join(f"{count} {truth}" for truth, count in sorted(truths.items()))
    images = sorted({(row.images, row.dataset) for row in rows})
    given = " or ".join(f"{count} images of `{dataset}`" for count, dataset in images)
    return f"{sum(truths.values())} detectors: {words}. Methods were given {given}."


def _columns(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    """(metric, truth) of the columns, ranks first and seconds last."""
    found = dict.fromkeys(map(_column, summaries))
    last = ("seconds", FAILED)
    return sorted(found, key=lambda column: (column[0] in last, bool(column[1]), column[0]))


def _overall(summaries: Sequence[Summary]) -> str:
    over_all = [each for each in summaries if not each.by]
    columns = _columns(over_all)
    heads = [" ".join(filter(None, (m, t and f"({t})"))) for m, t in columns]
    return _markdown(heads, _lines(over_all, columns, _column))


def _grouped_tables(summaries: Sequence[Summary], by: str, title: str) -> list[str]:
    """A table of the first metric: methods down, groups across."""
    of_by = [each for each in summaries if each.by == by]
    metrics = [metric for metric, _ in _columns(of_by) if metric not in ("seconds", FAILED)]
    if not metrics:
        return []
    of_metric = [each for each in of_by if each.metric == metrics[0]]
    groups = {}
    for each in of_metric:
        known = groups.get(each.group)
        if known is None or each.positives > known.positives:
            groups[each.group] = each
    if not groups:
        return []
    heads = [f"{name} ({each.positives})" for name, each in groups.items()]
    table = _markdown(heads, _lines(of_metric, list(groups), lambda each: each.group))
    return [f"{metrics[0]} by {title}; in brackets how many backdoored detectors:", table]


def _column(summary: Summary) -> tuple[str, str]:
    return summary.metric, summary.truth


def _lines(
    summaries: Sequence[Summary], columns: Sequence[Any], column_of: Callable[[Summary], Any]
) -> list[tuple[str, list[Summary | None]]]:
    """Each method with its summary in each column."""
    lines = []
    for method, own in grouped(summaries, lambda each: each.method):
        cells = {column_of(each): each for each in own}
        lines.append((method, [cells.get(column) for column in columns]))
    return lines


def _sort_value(cells: Sequence[Summary | None]) -> float:
    values = [cell.value for cell in cells if cell is not None and cell.value is not None]
    return values[0] if values else -1.0


def _cell(summary: Summary | None) -> str:
    if summary is None or summary.value is None:
        return DASH
    digits = 1 if summary.metric == "seconds" else 0 if summary.metric == FAILED else 3
    text = f"{summary.value:.{digits}f}"
    if summary.low is None or summary.high is None:
        return text
    return f"{text} [{summary.low:.2f}, {summary.high:.2f}]"


def _markdown(heads: Sequence[str], lines: Sequence[tuple[str, Sequence[Summary | None]]]) -> str:
    """A table of methods, that with the largest first value first."""
    ranked = sorted(lines, key=lambda line: -_sort_value(line[1]))
    rows = [["method", *heads], ["---", *["---:"] * len(heads)]]
    rows += [[f"`{name}`", *map(_cell, cells)] for name, cells in ranked]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {
            key: json.dumps(value) if isinstance(value, (dict, list)) else value
            for key, value in row.items()
        }
        writer.writerow(cells)
    return stream.getvalue()


def _page(rows: Sequence[ResultRow], summaries: Sequence[Summary]) -> dict[str, Any]:
    """What the page shows: data for what it computes itself, and tables of all else."""
    tasks = []
    for task, of_task in grouped(rows, lambda row: row.task):
        ranked = TASK_REGISTRY.get(task).ranked_by
        of_summaries = [each for each in summaries if each.task == task and not each.by]
        columns = [
            (metric, truth) for metric, truth in _columns(of_summaries) if truth or metric == FAILED
        ]
        tasks.append(
            {
                "name": task,
                "line": TASK_REGISTRY.choices()[task],
                "detectors": describe_detectors(of_task),
                "is_ranked": bool(ranked),
                "data": _data(of_task, ranked) if ranked else None,
                "columns": columns,
                "methods": _lines(of_summaries, columns, _column),
            }
        )
    return {"tasks": tasks, "cell": _cell, "filters": _FILTERS}


def _data(rows: Sequence[ResultRow], ranked: Sequence[str]) -> list[dict[str, Any]]:
    """The scores of a task, one a detector and method."""
    least: dict[str, float] = {}
    for row in rows:
        if row.metric in ranked and row.value is not None:
            least[row.method] = min(least.get(row.method, row.value), row.value)
    shown = []
    for row in rows:
        if row.metric in ranked or row.metric == FAILED:
            score = least.get(row.method, 0.0) if row.value is None else row.value
            shown.append(
                {key: getattr(row, key) or "" for key in _FILTERS}
                | {"method": row.method, "truth": truth_of(row), "score": score}
                | {"seconds": None if row.metric == FAILED else row.seconds}
            )
    return shown
