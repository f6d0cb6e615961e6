# SPDX-License-Identifier: Apache-2.0
"""Triggers that no patch of the augmentation resembles."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..measures import found, recovered
from ..plan import Plan
from ..repairs import FAST_VANILLA, OURS, RENEWAL
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Experiment, Section

# The first says what the patches of the last add.
REPAIRS = (FAST_VANILLA, RENEWAL, OURS)


@EXPERIMENT_REGISTRY.register("unseen")
class UnseenTriggers(Experiment):
    """Where patch augmentation stops working."""

    title = "Triggers unlike the augmentation's patches"
    place = 8

    def steps(self, plan: Plan) -> list[Step]:
        """A detector an attack, its repairs, and a clean detector under the same trigger."""
        steps = []
        for clean, backdoored in plan.unseen:
            steps += [
                plan.measure(clean, backdoored.trigger, backdoored.attack.name),
                plan.measure(backdoored),
                plan.scan(backdoored),
            ]
            steps += [plan.measure_repaired(backdoored, repair) for repair in REPAIRS]
        return steps

    def report(self, plan: Plan, results: StepResults) -> Section:
        """One row an attack and repair."""
        rows, failed = [], []
        for clean, backdoored in plan.unseen:
            reference = results.get(plan.measure(clean, backdoored.trigger, backdoored.attack.name))
            before = results.get(plan.measure(backdoored))
            scan = results.get(plan.scan(backdoored))
            if before and not before["attack_took"]:
                failed.append(backdoored.name)
            title = backdoored.attack.title
            verdict = scan["verdict"] if scan else ""
            for repair, measured in (
                ("clean detector", reference),
                ("original", before),
                *(
                    (repair.title, results.get(plan.measure_repaired(backdoored, repair)))
                    for repair in REPAIRS
                ),
            ):
                share = recovered(before, measured, reference)
                rows.append(
                    [
                        title,
                        repair,
                        verdict if repair == "original" else "",
                        Spread.of([found(measured)]),
                        Spread.of([measured and measured["asr"]]),
                        Spread.of([share if measured not in (before, reference) else None]),
                        Spread.of([measured and measured["clean"]["AP"]], 1),
                    ]
                )
        return Section(
            self.title,
            f"{plan.main_kind.title}: the clean detector of the first seed, fine-tuned on poisoned "
            "images of each attack; one run each.",
            (
                Table(
                    "unseen",
                    "Repairs of other attacks, measured with their own triggers",
                    (
                        "trigger",
                        "detector",
                        "scan",
                        "objects found, triggered",
                        "ASR",
                        "recovered",
                        "AP, clean",
                    ),
                    rows,
                ),
            )
            if rows
            else (),
            failed_attacks=tuple(failed),
        )
