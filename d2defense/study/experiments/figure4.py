# SPDX-License-Identifier: Apache-2.0
"""Figure 4: how a repair goes, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d2defense.registry import EXPERIMENT_REGISTRY

from ..figures import Curve, draw_curves
from ..measures import found
from ..plan import Plan
from ..repairs import COMPARED
from ..steps import Step, StepResults
from ..tables import MISSING, Spread, Table
from .base import Experiment, Section


@EXPERIMENT_REGISTRY.register("figure4")
class Figure4(Experiment):
    """AP on clean and triggered images while a detector is fine-tuned (the paper, section 4.3)."""

    title = "Figure 4: AP while fine-tuning"
    place = 5

    def steps(self, plan: Plan) -> list[Step]:
        """One backdoored detector, measured before, during and after each repair."""
        backdoored = plan.followed
        return [plan.measure(backdoored)] + [
            plan.measure_repaired(backdoored, repair, iteration=iteration)
            for repair in COMPARED
            for iteration in (*plan.figure_points(repair), None)
        ]

    def report(self, plan: Plan, results: StepResults) -> Section:
        """The figure and its numbers."""
        backdoored = plan.followed
        curves, rows = {}, []
        for repair in COMPARED:
            measured = {0: results.get(plan.measure(backdoored))}
            last = plan.last_iteration(backdoored, repair)
            for iteration in (*plan.figure_points(repair), None):
                step = plan.measure_repaired(backdoored, repair, iteration=iteration)
                measured[iteration or last] = results.get(step)
            known = {at: value for at, value in measured.items() if value and _has_ap(value)}
            for condition in ("clean", "triggered"):
                curves[f"{repair.title}, {condition}"] = Curve(
                    tuple(known), tuple(value[condition]["AP"] for value in known.values())
                )
            rows += [
                [
                    repair.title,
                    str(at),
                    *(
                        Spread.of([value and value[condition]["AP"]], 1)
                        for condition in ("clean", "triggered")
                    ),
                    Spread.of([found(value)]) if value else MISSING,
                ]
                for at, value in measured.items()
            ]
        return Section(
            self.title,
            f"{plan.main_kind.title}, seed {backdoored.seed}, one run each; the learning rate "
            "falls to zero along the way. One epoch of the defender's set is its number of images "
            "divided by those of a step.",
            (
                Table(
                    "figure4",
                    "AP after so many steps",
                    ("repair", "step", "AP, clean", "AP, triggered", "objects found, triggered"),
                    rows,
                ),
            ),
            {"figure4": draw_curves(curves, "fine-tuning step", "AP", (0, 100))},
        )


def _has_ap(evaluation: Mapping[str, Any]) -> bool:
    return all(evaluation[condition]["AP"] is not None for condition in ("clean", "triggered"))
