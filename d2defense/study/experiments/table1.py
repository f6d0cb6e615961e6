# SPDX-License-Identifier: Apache-2.0
"""Table 1: what the statistics say of clean and backdoored detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2defense.detection.calibration import Reference
from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Detector, Plan
from ..steps import Step, StepResults
from ..tables import MISSING, Spread, Table
from .base import Bar, Experiment, Section, statistic

STATISTICS = ("tau", "tau_all", "gap")
TITLES = {"tau": "tau (topk)", "tau_all": "tau (all)", "gap": "gap"}
# Least deviation of clean detectors that a judgment threshold assumes: what few of them show of it
# is too small.
LEAST_DEVIATION = 0.02
FALSE_ALARM_RATE = 0.01
LEAST_ASR = 0.6


@EXPERIMENT_REGISTRY.register("table1")
class Table1(Experiment):
    """Tau and gap, clean and triggered, over several seeds (the paper, section 4.2)."""

    title = "Table 1: identification"
    place = 1

    def steps(self, plan: Plan) -> list[Step]:
        """Every detector, measured with the paper's trigger, and its scan."""
        detectors = _detectors(plan)
        return [step for d in detectors for step in (plan.measure(d), plan.scan(d))]

    def report(self, plan: Plan, results: StepResults) -> Section:
        """One row a kind of detector and nature."""
        detectors = _detectors(plan)
        seen = {d: results.get(plan.measure(d)) for d in detectors}
        scans = {d: results.get(plan.scan(d)) for d in detectors}
        judged = {
            name: _judged(detectors, {d: statistic(seen[d], "triggered", name) for d in detectors})
            for name in STATISTICS
        }
        rows, decisions, attacked = [], [], []
        for kind in plan.profile.detectors:
            pairs = plan.of_kind(kind)
            for nature, group in (
                ("clean", [clean for clean, _ in pairs]),
                ("backdoored", [backdoored for _, backdoored in pairs]),
            ):
                shown = [
                    Spread.of(statistic(seen[d], condition, name) for d in group)
                    for name in STATISTICS
                    for condition in ("clean", "triggered")
                ]
                asr = Spread.of((seen[d] and seen[d]["asr"]) for d in group)
                rows.append([kind.title, nature, asr, *shown])
                verdicts = [scans[d] and scans[d]["verdict"] for d in group]
                decisions.append(
                    [
                        kind.title,
                        nature,
                        *(_count([judged[name].get(d) for d in group]) for name in STATISTICS),
                        _count([v and v == "backdoored" for v in verdicts]),
                        Spread.of((scans[d] and scans[d]["score"]) for d in group),
                    ]
                )
                if nature == "backdoored":
                    attacked.append((kind.title, asr))
        columns = [f"{TITLES[name]}, {c}" for name in STATISTICS for c in ("clean", "triggered")]
        return Section(
            self.title,
            "Statistics on the test images, clean and with the paper's trigger on every object; "
            "mean and standard deviation over the seeds. Judged by a statistic: its value on the "
            "triggered images lies above the threshold that the other clean detectors of all "
            "kinds set at 1 % false alarms. The scanner does not know the trigger and has its "
            "threshold from the shipped calibration.",
            (
                Table("table1", "Statistics", ("detector", "nature", "ASR", *columns), rows),
                Table(
                    "table1_decisions",
                    "Called backdoored",
                    (
                        "detector",
                        "nature",
                        *(f"by {TITLES[name]}" for name in STATISTICS),
                        "by the scanner",
                        "the scanner's score",
                    ),
                    decisions,
                ),
            ),
            bars=tuple(
                Bar(
                    f"ASR before, {title}",
                    f"at least {LEAST_ASR}",
                    str(asr),
                    None if asr.mean is None else asr.mean >= LEAST_ASR,
                )
                for title, asr in attacked
            ),
            failed_attacks=tuple(
                d.name for d in detectors if d.attack and seen[d] and not seen[d]["attack_took"]
            ),
        )


def _detectors(plan: Plan) -> list[Detector]:
    return [detector for pair in plan.pairs() for detector in pair]


def _judged(
    detectors: Sequence[Detector], values: dict[Detector, float | None]
) -> dict[Detector, bool]:
    """Whether each detector lies above the threshold of the clean ones other than itself."""
    known = {d: value for d, value in values.items() if value is not None}
    verdicts = {}
    for detector, value in known.items():
        others = [v for d, v in known.items() if not d.attack and d != detector]
        if len(others) > 1:
            clean = Reference(np.empty((0, 0)), np.array(others), FALSE_ALARM_RATE, LEAST_DEVIATION)
            verdicts[detector] = value > clean.threshold
    return verdicts


def _count(verdicts: Sequence[bool | None]) -> str:
    known = [verdict for verdict in verdicts if verdict is not None]
    return f"{sum(known)}/{len(known)}" if known else MISSING
