# SPDX-License-Identifier: Apache-2.0
"""From a profile to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2defense.registry import EXPERIMENT_REGISTRY

from .experiments.base import Bar
from .plan import Plan
from .profiles import StudyProfile
from .report import write_report
from .runner import run_steps
from .steps import Step, StepResults, open_steps
from .workplace import Workplace


@dataclass(frozen=True)
class Reproduction:
    """What a study came to.

    Attributes:
        report: path of ``report.md``.
        bars: what the results are held to.
        failed: one line for each step that failed, by its name.
    """

    report: Path
    bars: list[Bar]
    failed: dict[str, str]


def planned(profile: StudyProfile, names: Sequence[str], folder: Path) -> list[Step]:
    """The steps of some experiments that are still to be done, in order."""
    return open_steps(_wanted(Plan(profile), names), StepResults(folder))


def reproduce(
    profile: StudyProfile,
    names: Sequence[str],
    workplace: Workplace,
    workers: int,
    command: str,
) -> Reproduction:
    """Do what is open of some experiments, and write the report.

    Args:
        profile: of the study.
        names: of the experiments, in ``EXPERIMENT_REGISTRY``.
        workplace: where.
        workers: processes that work at a time.
        command: that asks for it, for the report.

    Raises:
        UsageError: another study is at work in the folder, or it cannot be written to.
    """
    failed = run_steps(_wanted(Plan(profile), names), workplace, workers)
    return report_of(profile, names, workplace.folder, command, failed)


def report_of(
    profile: StudyProfile,
    names: Sequence[str],
    folder: Path,
    command: str,
    failed: Mapping[str, str] | None = None,
) -> Reproduction:
    """Write the report of what results there are.

    Args:
        profile: of the study.
        names: of the experiments.
        folder: of the study.
        command: that asks for it, for the report.
        failed: one line for each step that failed, by its name.
    """
    failed = dict(failed or {})
    report, bars = write_report(folder, Plan(profile), names, failed, command)
    return Reproduction(report, bars, failed)


def _wanted(plan: Plan, names: Sequence[str]) -> list[Step]:
    return [step for name in names for step in EXPERIMENT_REGISTRY.get(name)().steps(plan)]
