# SPDX-License-Identifier: Apache-2.0
"""Table 1: what the statistics say of clean and backdoored detectors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from d2defense.detection.calibration import Reference
from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Detector, Plan
from ..rows import CONDITIONS, StudyRows
from ..steps import Step
from ..tables import MISSING, Table
from .base import Bar, Column, Experiment, Line, Section, failed_attacks, pivot, spread

STATISTICS = {"tau": "tau (topk)", "tau_all": "tau (all)", "gap": "gap"}
# Least deviation of clean detectors that a judgment threshold assumes: what few of them show of it
# is too small.
LEAST_DEVIATION = 0.02
FALSE_ALARM_RATE = 0.01
LEAST_ASR = 0.6
_HEADS = ("detector", "nature")


@EXPERIMENT_REGISTRY.register("table1")
class Table1(Experiment):
    """Tau and gap, clean and triggered, over several seeds (the paper, section 4.2)."""

    title = "Table 1: identification"
    place = 1

    def steps(self, plan: Plan) -> list[Step]:
        """Every detector, measured with the paper's trigger, and its scan."""
        return [step for d in _detectors(plan) for step in (plan.measure(d), plan.scan(d))]

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """One row a kind of detector and nature."""
        groups = list(_groups(plan))
        columns = [Column("ASR", "asr")] + [
            Column(f"{title}, {condition}", f"{name}:{condition}")
            for name, title in STATISTICS.items()
            for condition in CONDITIONS
        ]
        lines = [Line(names, map(plan.measure, group)) for names, group in groups]
        asr = {
            names[0]: spread(rows, map(plan.measure, group), "asr")
            for names, group in groups
            if group[0].attack
        }
        return Section(
            self.title,
            "Statistics on the test images, clean and with the paper's trigger on every object; "
            "mean and standard deviation over the seeds. Judged by a statistic: its value on the "
            "triggered images lies above the threshold that the other clean detectors of all "
            "kinds set at 1 % false alarms. The scanner does not know the trigger and has its "
            "threshold from the shipped calibration.",
            (
                pivot("table1", "Statistics", _HEADS, columns, lines, rows),
                _decisions(plan, rows, groups),
            ),
            bars=tuple(
                Bar.at_least(f"ASR before, {title}", LEAST_ASR, value.mean, str(value))
                for title, value in asr.items()
            ),
            failed_attacks=failed_attacks(rows, map(plan.measure, _detectors(plan))),
        )


def _detectors(plan: Plan) -> list[Detector]:
    return [detector for pair in plan.pairs() for detector in pair]


def _groups(plan: Plan) -> Iterator[tuple[tuple[str, str], list[Detector]]]:
    for kind in plan.profile.detectors:
        for nature, group in zip(
            ("clean", "backdoored"), zip(*plan.of_kind(kind), strict=True), strict=True
        ):
            yield (kind.title, nature), list(group)


def _decisions(
    plan: Plan, rows: StudyRows, groups: list[tuple[tuple[str, str], list[Detector]]]
) -> Table:
    judged = [_judged(plan, rows, name) for name in STATISTICS]
    judged.append({d: rows.value(plan.scan(d), "alarm") for d in _detectors(plan)})
    cells = []
    for names, group in groups:
        counts = [_count([verdicts.get(d) for d in group]) for verdicts in judged]
        cells.append([*names, *counts, spread(rows, map(plan.scan, group), "score")])
    by = [f"by {title}" for title in STATISTICS.values()]
    heads = (*_HEADS, *by, "by the scanner", "the scanner's score")
    return Table("table1_decisions", "Called backdoored", heads, cells)


def _judged(plan: Plan, rows: StudyRows, name: str) -> dict[Detector, float]:
    """Whether each detector lies above the threshold of the clean ones other than itself."""
    values = {d: rows.value(plan.measure(d), f"{name}:triggered") for d in _detectors(plan)}
    known = {d: value for d, value in values.items() if value is not None}
    verdicts = {}
    for detector, value in known.items():
        others = [v for d, v in known.items() if not d.attack and d != detector]
        if len(others) > 1:
            clean = Reference(np.empty((0, 0)), np.array(others), FALSE_ALARM_RATE, LEAST_DEVIATION)
            verdicts[detector] = float(value > clean.threshold)
    return verdicts


def _count(verdicts: list[float | None]) -> str:
    known = [verdict for verdict in verdicts if verdict is not None]
    return f"{sum(known):.0f}/{len(known)}" if known else MISSING
