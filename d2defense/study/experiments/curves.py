# SPDX-License-Identifier: Apache-2.0
"""How much a repair needs: images of the defender's set, and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from d2defense.registry import EXPERIMENT_REGISTRY

from ..figures import Curve, draw_curves
from ..plan import Plan
from ..repairs import OURS, RENEWAL, Repair
from ..rows import StudyRows
from ..steps import Step
from .base import Column, Experiment, Line, Section, pivot

FOLLOWED = (RENEWAL, OURS)
_COLUMNS = (
    Column("recovered", "recovered"),
    Column("ASR after", "asr"),
    Column("AP, clean", "AP:clean", 1),
)


@EXPERIMENT_REGISTRY.register("curves")
class Curves(Experiment):
    """What is recovered against the defender's set's size, and against the number of steps."""

    title = "Size of the defender's set, and steps"
    place = 9

    def steps(self, plan: Plan) -> list[Step]:
        """Repairs of one backdoored detector."""
        repaired = [
            measured(plan, repair, value)
            for _, _, values, measured in _axes(plan)
            for repair in FOLLOWED
            for value in values
        ]
        return [*map(plan.measure, plan.of_kind(plan.main_kind)[0]), *repaired]

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """Two figures, and their numbers."""
        clean, backdoored = plan.of_kind(plan.main_kind)[0]
        tables, figures = [], {}
        for name, label, values, measured in _axes(plan):
            curves, lines = {}, []
            for repair in FOLLOWED:
                steps = {value: measured(plan, repair, value) for value in values}
                for step in steps.values():
                    rows.compare(plan.measure(clean), plan.measure(backdoored), step)
                lines += [Line((repair.title, str(v)), [step]) for v, step in steps.items()]
                curves[repair.title] = Curve.of(
                    {value: rows.value(step, "recovered") for value, step in steps.items()}
                )
            title, heads = f"Recovered against {label}", ("repair", label)
            tables.append(pivot(f"curves_{name}", title, heads, _COLUMNS, lines, rows))
            figures[f"curves_{name}"] = draw_curves(curves, label, "recovered", (0, 1.1), True)
        return Section(
            self.title,
            f"{plan.main_kind.title}, seed {backdoored.seed}, one run each. The images are drawn "
            f"from {plan.profile.pool}; {plan.profile.defender_images} is the profile's own "
            "set; each repair's number of steps stays.",
            tuple(tables),
            figures,
        )


def _axes(
    plan: Plan,
) -> list[tuple[str, str, Sequence[int], Callable[[Plan, Repair, int], Step]]]:
    """Name and label of each axis, its values, and the measurement at one of them."""
    return [
        ("images", "images of the defender's set", plan.profile.sizes, _with_images),
        ("steps", "steps", plan.profile.steps, _with_steps),
    ]


def _with_images(plan: Plan, repair: Repair, images: int) -> Step:
    _, backdoored = plan.of_kind(plan.main_kind)[0]
    own = images == plan.profile.defender_images
    return plan.measure_repaired(backdoored, repair, None if own else images)


def _with_steps(plan: Plan, repair: Repair, steps: int) -> Step:
    _, backdoored = plan.of_kind(plan.main_kind)[0]
    own = steps == plan.last_iteration(backdoored, repair)
    return plan.measure_repaired(backdoored, repair if own else repair.with_steps(steps))
