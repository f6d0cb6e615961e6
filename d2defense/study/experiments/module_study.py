# SPDX-License-Identifier: Apache-2.0
"""What the reset of each module recovers."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Plan
from ..profiles import DetectorKind
from ..repairs import RENEWAL, VANILLA, Repair, resetting
from ..rows import StudyRows
from ..steps import Step
from .base import Column, Experiment, Line, Section, pivot

_COLUMNS = (
    Column("recovered", "recovered"),
    Column("ASR after", "asr"),
    Column("AP, clean", "AP:clean", 1),
)


@EXPERIMENT_REGISTRY.register("modules")
class ModuleStudy(Experiment):
    """Renewal of each module group and of useful sets, against what the scan identified."""

    title = "Module study"
    place = 6

    def steps(self, plan: Plan) -> list[Step]:
        """One pair of detectors a kind, and its repairs."""
        steps = []
        for kind in _kinds(plan):
            clean, backdoored = plan.of_kind(kind)[0]
            steps += [plan.measure(clean), plan.measure(backdoored)]
            steps += [plan.measure_repaired(backdoored, repair) for repair in _repairs(kind)]
        return steps

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """One row a kind and set of modules."""
        lines = []
        for kind in _kinds(plan):
            clean, bad = plan.of_kind(kind)[0]
            named = rows.setting(plan.repair(bad, RENEWAL), "modules")
            titles = {
                VANILLA: "nothing (vanilla)",
                RENEWAL: "as identified" + (f": {', '.join(named)}" if named else ""),
            }
            for repair in _repairs(kind):
                after = plan.measure_repaired(bad, repair)
                rows.compare(plan.measure(clean), plan.measure(bad), after)
                lines.append(Line((kind.title, titles.get(repair, repair.title)), [after]))
        heads, title = ("detector", "reset"), "Reset of each module group"
        return Section(
            self.title,
            f"Seed {plan.profile.seeds[0]}, one run each. Identified: the set that the scan of "
            "the backdoored detector names; this is the paper's renewal.",
            (pivot("modules", title, heads, _COLUMNS, lines, rows),),
        )


def _kinds(plan: Plan) -> list[DetectorKind]:
    return [kind for kind in plan.profile.detectors if kind.groups]


def _repairs(kind: DetectorKind) -> list[Repair]:
    return [VANILLA, *(resetting(modules) for modules in kind.groups), RENEWAL]
