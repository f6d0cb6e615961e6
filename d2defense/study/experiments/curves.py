# SPDX-License-Identifier: Apache-2.0
"""How much a repair needs: images of the defender's set, and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from d2defense.registry import EXPERIMENT_REGISTRY

from ..figures import Curve, draw_curves
from ..measures import recovered
from ..plan import Plan
from ..repairs import OURS, RENEWAL, Repair
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Experiment, Section

FOLLOWED = (RENEWAL, OURS)


@EXPERIMENT_REGISTRY.register("curves")
class Curves(Experiment):
    """What is recovered against the defender's set's size, and against the number of steps."""

    title = "Size of the defender's set, and steps"
    place = 9

    def steps(self, plan: Plan) -> list[Step]:
        """Repairs of one backdoored detector."""
        clean, backdoored = plan.of_kind(plan.main_kind)[0]
        return [
            plan.measure(clean),
            plan.measure(backdoored),
            *(
                measured(plan, repair, value)
                for values, measured in _axes(plan)
                for repair in FOLLOWED
                for value in values
            ),
        ]

    def report(self, plan: Plan, results: StepResults) -> Section:
        """Two figures, and their numbers."""
        clean, backdoored = plan.of_kind(plan.main_kind)[0]
        reference, before = (results.get(plan.measure(d)) for d in (clean, backdoored))
        tables, figures = [], {}
        for (values, measured), (name, label) in zip(
            _axes(plan),
            (("images", "images of the defender's set"), ("steps", "steps")),
            strict=True,
        ):
            curves, rows = {}, []
            for repair in FOLLOWED:
                after = {value: results.get(measured(plan, repair, value)) for value in values}
                shares = {v: recovered(before, e, reference) for v, e in after.items()}
                known = {v: share for v, share in shares.items() if share is not None}
                curves[repair.title] = Curve(tuple(known), tuple(known.values()))
                rows += [
                    [
                        repair.title,
                        str(value),
                        Spread.of([shares[value]]),
                        Spread.of([after[value] and after[value]["asr"]]),
                        Spread.of([after[value] and after[value]["clean"]["AP"]], 1),
                    ]
                    for value in values
                ]
            headers = ("repair", label, "recovered", "ASR after", "AP, clean")
            tables.append(Table(f"curves_{name}", f"Recovered against {label}", headers, rows))
            figures[f"curves_{name}"] = draw_curves(curves, label, "recovered", (0, 1.1), True)
        return Section(
            self.title,
            f"{plan.main_kind.title}, seed {backdoored.seed}, one run each. The images are drawn "
            f"from {plan.profile.pool}; {plan.profile.defender_images} is the profile's own "
            "set; each repair's number of steps stays.",
            tuple(tables),
            figures,
        )


def _axes(plan: Plan) -> list[tuple[Sequence[int], Callable[[Plan, Repair, int], Step]]]:
    """The values of each axis, and the measurement at one of them."""
    return [(plan.profile.sizes, _with_images), (plan.profile.steps, _with_steps)]


def _with_images(plan: Plan, repair: Repair, images: int) -> Step:
    _, backdoored = plan.of_kind(plan.main_kind)[0]
    own = images == plan.profile.defender_images
    return plan.measure_repaired(backdoored, repair, None if own else images)


def _with_steps(plan: Plan, repair: Repair, steps: int) -> Step:
    _, backdoored = plan.of_kind(plan.main_kind)[0]
    own = steps == plan.last_iteration(backdoored, repair)
    return plan.measure_repaired(backdoored, repair if own else repair.with_steps(steps))
