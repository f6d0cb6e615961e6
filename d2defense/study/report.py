# SPDX-License-Identifier: Apache-2.0
"""What a study writes: Markdown, CSV and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from d2defense.environment import library_versions
from d2defense.files import write_bytes, write_text
from d2defense.registry import EXPERIMENT_REGISTRY

from .experiments.base import Bar, Section
from .plan import Plan
from .rows import SECONDS, StudyRows
from .steps import Step, in_order
from .tables import Table

STUDY_REPORT_FILE = "report.md"


def write_report(
    folder: Path, plan: Plan, names: Sequence[str], failed: Mapping[str, str], command: str
) -> tuple[Path, list[Bar]]:
    """Write tables and figures of what results there are.

    Args:
        folder: of the study; gets ``report.md``, ``tables/*.csv``, ``figures/*.png``, and the rows
            that these are of as ``rows/ACTION/METHOD.jsonl``.
        plan: of the study.
        names: of the experiments.
        failed: one line for each step that failed.
        command: that made it.

    Returns:
        The path of the report, and what the results are held to.
    """
    experiments = [EXPERIMENT_REGISTRY.get(name)() for name in names]
    steps = {one: one.steps(plan) for one in experiments}
    wanted = [step for of_one in steps.values() for step in of_one]
    rows = StudyRows.read(folder, wanted)
    sections = [one.report(plan, rows) for one in experiments if steps[one]]
    bars = [bar for section in sections for bar in section.bars]
    missing = _missing(rows, wanted)
    parts = [f"# Study: {plan.profile.name}\n\n    {command}\n"]
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    parts.append(f"Made with {versions}.\n")
    if missing:
        parts.append(f"**Incomplete**: {len(missing)} steps have no result.\n")
    parts += [f"* {name}: {line}\n" for name, line in failed.items()]
    if bars:
        parts.append(f"## Bars\n\n{bars_table(bars).markdown()}")
    for section in sections:
        parts.append(_section(folder, section))
    parts.append(_times(rows, wanted))
    return write_text(folder / STUDY_REPORT_FILE, "\n".join(parts)), bars


def _section(folder: Path, section: Section) -> str:
    parts = [f"## {section.title}\n\n{section.text}\n"]
    if section.failed_attacks:
        names = ", ".join(section.failed_attacks)
        parts.append(f"**Failed attacks** (ASR below one half): {names}.\n")
    for name, content in section.figures.items():
        write_bytes(folder / "figures" / f"{name}.png", content)
        parts.append(f"![{section.title}](figures/{name}.png)\n")
    for table in section.tables:
        write_text(folder / "tables" / f"{table.name}.csv", table.csv())
        parts.append(table.markdown())
    return "\n".join(parts)


def bars_table(bars: Sequence[Bar]) -> Table:
    """What the results are held to, as a table."""
    words = {True: "met", False: "missed", None: "not measured"}
    rows = [[bar.what, bar.wanted, bar.measured, words[bar.met]] for bar in bars]
    return Table("bars", "What the results are held to", ("what", "bar", "measured", ""), rows)


def _missing(rows: StudyRows, wanted: Iterable[Step]) -> set[str]:
    """Names of steps that have no rows and are wanted, or needed by such."""
    found: set[str] = set()
    for step in wanted:
        if not rows.has(step):
            found |= {step.name, *_missing(rows, step.needs.values())}
    return found


def _times(rows: StudyRows, wanted: Sequence[Step]) -> str:
    """How long the steps took, summed by action."""
    seconds: dict[str, list[float]] = {}
    for step in in_order(wanted):
        if rows.has(step):
            seconds.setdefault(step.action, []).append(rows.value(step, SECONDS))
    cells = [
        [action, str(len(times)), f"{sum(times) / 60:.1f}", f"{sum(times) / len(times):.0f}"]
        for action, times in seconds.items()
    ]
    headers = ("action", "steps", "minutes in all", "seconds each")
    return f"## Time\n\n{Table('time', 'Of one worker', headers, cells).markdown()}"
