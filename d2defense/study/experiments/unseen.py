# SPDX-License-Identifier: Apache-2.0
"""Triggers that no patch of the augmentation resembles."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Detector, Plan
from ..repairs import FAST_VANILLA, OURS, RENEWAL
from ..rows import StudyRows
from ..steps import Step
from .base import Column, Experiment, Line, Section, failed_attacks, pivot

# The first says what the patches of the last add.
REPAIRS = (FAST_VANILLA, RENEWAL, OURS)
_COLUMNS = (
    Column("objects found, triggered", "objects_found:triggered"),
    Column("ASR", "asr"),
    Column("recovered", "recovered"),
    Column("AP, clean", "AP:clean", 1),
)


@EXPERIMENT_REGISTRY.register("unseen")
class UnseenTriggers(Experiment):
    """Where patch augmentation stops working."""

    title = "Triggers unlike the augmentation's patches"
    place = 8

    def steps(self, plan: Plan) -> list[Step]:
        """A detector an attack, its repairs, and a clean detector under the same trigger."""
        steps = []
        for clean, bad in plan.unseen:
            steps += [_reference(plan, clean, bad), plan.measure(bad), plan.scan(bad)]
            steps += [plan.measure_repaired(bad, repair) for repair in REPAIRS]
        return steps

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """One row an attack and repair."""
        lines = []
        for clean, bad in plan.unseen:
            reference, before = _reference(plan, clean, bad), plan.measure(bad)
            title, verdict = bad.attack.title, rows.setting(plan.scan(bad), "verdict")
            lines.append(Line((title, "clean detector", ""), [reference]))
            lines.append(Line((title, "original", verdict or ""), [before]))
            for repair in REPAIRS:
                after = plan.measure_repaired(bad, repair)
                rows.compare(reference, before, after)
                lines.append(Line((title, repair.title, ""), [after]))
        table = pivot(
            "unseen",
            "Repairs of other attacks, measured with their own triggers",
            ("trigger", "detector", "scan"),
            _COLUMNS,
            lines,
            rows,
        )
        return Section(
            self.title,
            f"{plan.main_kind.title}: the clean detector of the first seed, fine-tuned on poisoned "
            "images of each attack; one run each.",
            (table,) if lines else (),
            failed_attacks=failed_attacks(rows, (plan.measure(bad) for _, bad in plan.unseen)),
        )


def _reference(plan: Plan, clean: Detector, bad: Detector) -> Step:
    """The clean detector under the trigger of the other."""
    return plan.measure(clean, bad.trigger, bad.attack.name)
