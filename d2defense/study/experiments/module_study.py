# SPDX-License-Identifier: Apache-2.0
"""What the reset of each module recovers."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..measures import recovered
from ..plan import Plan
from ..profiles import DetectorKind
from ..repairs import RENEWAL, VANILLA, Repair, resetting
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Experiment, Section


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
            steps += [plan.measure_repaired(backdoored, repair) for repair in _repairs(kind.groups)]
        return steps

    def report(self, plan: Plan, results: StepResults) -> Section:
        """One row a kind and set of modules."""
        rows = []
        for kind in _kinds(plan):
            clean, backdoored = plan.of_kind(kind)[0]
            renewed = results.get(plan.repair(backdoored, RENEWAL))
            titles = {
                VANILLA: "nothing (vanilla)",
                RENEWAL: f"as identified: {', '.join(renewed['modules'])}"
                if renewed
                else "as identified",
            }
            for repair in _repairs(kind.groups):
                after = results.get(plan.measure_repaired(backdoored, repair))
                rows.append(
                    [
                        kind.title,
                        titles.get(repair, repair.title),
                        Spread.of(
                            [
                                recovered(
                                    results.get(plan.measure(backdoored)),
                                    after,
                                    results.get(plan.measure(clean)),
                                )
                            ]
                        ),
                        Spread.of([after and after["asr"]]),
                        Spread.of([after and after["clean"]["AP"]], 1),
                    ]
                )
        return Section(
            self.title,
            f"Seed {plan.profile.seeds[0]}, one run each. Identified: the set that the scan of "
            "the backdoored detector names; this is the paper's renewal.",
            (
                Table(
                    "modules",
                    "Reset of each module group",
                    ("detector", "reset", "recovered", "ASR after", "AP, clean"),
                    rows,
                ),
            ),
        )


def _kinds(plan: Plan) -> list[DetectorKind]:
    return [kind for kind in plan.profile.detectors if kind.groups]


def _repairs(groups: tuple[tuple[str, ...], ...]) -> list[Repair]:
    return [VANILLA, *(resetting(modules) for modules in groups), RENEWAL]
