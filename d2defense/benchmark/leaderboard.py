# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: Markdown, CSV and one page, all from the same summaries."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from d2defense.files import write_text
from d2defense.registry import TASK_REGISTRY
from d2defense.report.page import write_page
from d2defense.study.results import FAILED, ResultRow, ResultStore
from d2defense.text import DASH

from .tables import GROUPINGS, Summary, group_order, grouped, summarise, truth_of
from .zoo.export import read_labels

MARKDOWN, PAGE, SUMMARIES, ROWS = "leaderboard.md", "leaderboard.html", "summaries.csv", "rows.csv"
# The last columns.
_LAST = ("seconds", FAILED)
# Metrics that are no shares: one digit after the point will do.
_WIDE = ("ap", "seconds")


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
    """The tables of all tasks: over all detectors, and by each grouping that tells any apart."""
    parts = ["# Leaderboard"]
    for task, of_task in grouped(rows, lambda row: row.task):
        parts += [f"## {task}", TASK_REGISTRY.choices()[task], describe_detectors(of_task)]
        for table in tables_of([each for each in summaries if each.task == task]):
            parts += [f"{table.title}:", _markdown(table)]
        failures = grouped(
            [row for row in of_task if row.metric == FAILED], lambda row: (row.variant, row.reason)
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
    given = []
    for dataset, own in grouped(rows, lambda row: row.dataset):
        counts = sorted({row.images for row in own})
        given.append(f"{' or '.join(map(str, counts))} images of `{dataset}`")
    return f"{sum(truths.values())} detectors: {words}. Methods were given {', '.join(given)}."


class ShownCell(NamedTuple):
    """A cell of a table: what is read, and what the page sorts by."""

    text: str
    value: float | str


@dataclass(frozen=True)
class ShownTable:
    """One table of a report.

    Attributes:
        title: above it.
        heads: of the columns.
        lines: group, truth and method, as far as they tell lines apart; how many detectors; and
            one cell a metric.
        named: how many of a line's first cells are names.
    """

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[ShownCell]]
    named: int


def tables_of(summaries: Sequence[Summary]) -> list[ShownTable]:
    """The tables of a task.

    Each grouping gives two: numbers that compare backdoored with clean detectors, and means over
    detectors of one truth. Groupings that have but one group say nothing that all together do not.
    Within a group the method with the largest first value comes first.
    """
    tables = []
    for by, grouping in GROUPINGS.items():
        of_by = [each for each in summaries if each.by == by]
        groups = list(dict.fromkeys(sorted((each.group for each in of_by), key=group_order)))
        if by in ("", "part") or len(groups) > 1:
            for is_mean in (False, True):
                chosen = [each for each in of_by if bool(each.truth) is is_mean]
                if chosen:
                    tables.append(_table(chosen, groups, grouping.title if by else ""))
    return tables


def _table(summaries: Sequence[Summary], groups: Sequence[str], by: str) -> ShownTable:
    """The table of one grouping; ``by`` is its title, "" for all together."""
    is_mean = bool(summaries[0].truth)
    metrics = sorted(
        {each.metric for each in summaries}, key=lambda metric: (metric in _LAST, metric)
    )
    found = []
    for (group, truth, method), own in grouped(
        summaries, lambda each: (each.group, each.truth, each.method)
    ):
        cells = {each.metric: each for each in own}
        shown = [_cell(cells.get(metric)) for metric in metrics]
        names = [group] * bool(by) + [truth] * is_mean + [method]
        line = [*(ShownCell(name, name) for name in names), _count(own), *shown]
        first = shown[0].value
        rank = -first if isinstance(first, float) else 0.0
        found.append((groups.index(group), truth, rank, line))
    found.sort(key=lambda each: each[:3])
    heads = [by] * bool(by) + ["of"] * is_mean + ["method"]
    title = f"By {by}" if by else "Over all"
    return ShownTable(
        f"{title}, means over detectors" if is_mean else title,
        [*heads, "detectors", *metrics],
        [line for *_, line in found],
        len(heads),
    )


def _count(summaries: Sequence[Summary]) -> ShownCell:
    """How many detectors a line is of; where a method says nothing of some, the most."""
    told = [each for each in summaries if each.metric not in _LAST] or summaries
    positives, negatives = (max(getattr(e, n) for e in told) for n in ("positives", "negatives"))
    compares = positives and negatives
    text = f"{positives} + {negatives}" if compares else f"{positives or negatives}"
    return ShownCell(text, float(positives or negatives))


def _cell(summary: Summary | None) -> ShownCell:
    if summary is None or summary.value is None:
        return ShownCell(DASH, "")
    digits = 0 if summary.metric == FAILED else 1 if summary.metric.startswith(_WIDE) else 3
    text = f"{summary.value:.{digits}f}"
    if summary.low is not None and summary.high is not None:
        digits = min(digits, 2)
        text = f"{text} [{summary.low:.{digits}f}, {summary.high:.{digits}f}]"
    return ShownCell(text, summary.value)


def _markdown(table: ShownTable) -> str:
    marks = ["---" if place < table.named else "---:" for place in range(len(table.heads))]
    rows = [list(table.heads), marks]
    for line in table.lines:
        texts = [cell.text.replace("|", "\\|") for cell in line]
        texts[table.named - 1] = f"`{texts[table.named - 1]}`"
        rows.append(texts)
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
        scored = [row for row in of_task if row.quantity in (*ranked, FAILED)] if ranked else []
        filters = [
            {
                "key": by,
                "title": grouping.title,
                "groups": sorted({grouping.of(row) for row in scored} - {""}, key=group_order),
                "of_negatives": grouping.of_negatives,
                "of_weak": grouping.of_weak,
                "tells_apart": grouping.tells_apart,
            }
            for by, grouping in GROUPINGS.items()
            if len({grouping.of(row) for row in scored}) > 1
        ]
        tasks.append(
            {
                "name": task,
                "line": TASK_REGISTRY.choices()[task],
                "detectors": describe_detectors(of_task),
                "filters": filters,
                "data": {"filters": filters, "scores": _scores(scored)} if scored else None,
                "tables": tables_of([each for each in summaries if each.task == task]),
            }
        )
    return {"tasks": tasks}


def _scores(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """The scores of a task, one a row, with the groups that it is of."""
    shown = []
    for method, own in grouped(rows, lambda row: row.variant):
        least = min((row.value for row in own if row.value is not None), default=0.0)
        for row in own:
            has_failed = row.metric == FAILED
            shown.append(
                {by: grouping.of(row) for by, grouping in GROUPINGS.items() if by}
                | {"method": method, "truth": truth_of(row), "detector": row.detector}
                | {"score": least if row.value is None else row.value, "failed": has_failed}
                | {"seconds": None if has_failed else row.seconds}
            )
    return shown
