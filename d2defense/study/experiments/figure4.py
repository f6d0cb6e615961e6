# SPDX-License-Identifier: Apache-2.0
"""Figure 4: how a repair goes, step by step."""

from __future__ import annotations

from collections.abc import Iterator

from d2defense.registry import EXPERIMENT_REGISTRY

from ..figures import Curve, draw_curves
from ..plan import Plan
from ..repairs import COMPARED, Repair
from ..rows import CONDITIONS, StudyRows
from ..steps import Step
from .base import Column, Experiment, Line, Section, pivot

_COLUMNS = (
    *(Column(f"AP, {condition}", f"AP:{condition}", 1) for condition in CONDITIONS),
    Column("objects found, triggered", "objects_found:triggered"),
)


@EXPERIMENT_REGISTRY.register("figure4")
class Figure4(Experiment):
    """AP on clean and triggered images while a detector is fine-tuned (the paper, section 4.3)."""

    title = "Figure 4: AP while fine-tuning"
    place = 5

    def steps(self, plan: Plan) -> list[Step]:
        """One backdoored detector, measured before, during and after each repair."""
        return [step for repair in COMPARED for _, step in _points(plan, repair)]

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """The figure and its numbers."""
        curves, lines = {}, []
        for repair in COMPARED:
            points = list(_points(plan, repair))
            lines += [Line((repair.title, str(at)), [step]) for at, step in points]
            for condition in CONDITIONS:
                metric = f"AP:{condition}"
                curves[f"{repair.title}, {condition}"] = Curve.of(
                    {at: rows.value(step, metric) for at, step in points}
                )
        heads, title = ("repair", "step"), "AP after so many steps"
        return Section(
            self.title,
            f"{plan.main_kind.title}, seed {plan.followed.seed}, one run each; the learning rate "
            "falls to zero along the way. One epoch of the defender's set is its number of images "
            "divided by those of a step.",
            (pivot("figure4", title, heads, _COLUMNS, lines, rows),),
            {"figure4": draw_curves(curves, "fine-tuning step", "AP", (0, 100))},
        )


def _points(plan: Plan, repair: Repair) -> Iterator[tuple[int, Step]]:
    """After how many steps of fine-tuning the detector is measured, and by what."""
    yield 0, plan.measure(plan.followed)
    for at in plan.figure_points(repair):
        yield at, plan.measure_repaired(plan.followed, repair, iteration=at)
    last = plan.last_iteration(plan.followed, repair)
    yield last, plan.measure_repaired(plan.followed, repair)
