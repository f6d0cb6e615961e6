# SPDX-License-Identifier: Apache-2.0
"""The repair of a detector of real photos."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..measures import found, recovered
from ..plan import Plan
from ..repairs import COMPARED, FAST_VANILLA
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Bar, Experiment, Section

REPAIRS = (*COMPARED, FAST_VANILLA)
LEAST_RECOVERED = 0.9


@EXPERIMENT_REGISTRY.register("photos")
class PhotosRepair(Experiment):
    """Repairs of the backdoored detectors of a dataset of one's own."""

    title = "Photos"
    place = 10

    def steps(self, plan: Plan) -> list[Step]:
        """Clean and backdoored detectors, and the repairs of the latter."""
        steps = []
        for clean, backdoored in plan.photos:
            steps += [plan.measure(clean), plan.measure(backdoored)]
            steps += [plan.scan(clean), plan.scan(backdoored)]
            steps += [plan.measure_repaired(backdoored, repair) for repair in REPAIRS]
        return steps

    def report(self, plan: Plan, results: StepResults) -> Section:
        """One row a detector."""
        rows, bars = [], []
        for clean, backdoored in plan.photos:
            reference, before = (
                results.get(plan.measure(clean)),
                results.get(plan.measure(backdoored)),
            )
            rows.append(_row("clean detector", reference, None))
            rows.append(_row("original", before, None))
            for repair in REPAIRS:
                after = results.get(plan.measure_repaired(backdoored, repair))
                share = recovered(before, after, reference)
                rows.append(_row(repair.title, after, share))
                if repair.name == "ours":
                    bars.append(
                        Bar(
                            f"recovered by ours, photos, seed {backdoored.seed}",
                            f"at least {LEAST_RECOVERED}",
                            "not measured" if share is None else f"{share:.2f}",
                            None if share is None else share >= LEAST_RECOVERED,
                        )
                    )
        headers = (
            "detector",
            "AP, clean",
            "AP50, clean",
            "AP, triggered",
            "AP50, triggered",
            "objects found, clean",
            "objects found, triggered",
            "ASR",
            "recovered",
        )
        return Section(
            self.title,
            "Detectors of the photos, trained from scratch on the training part, repaired with "
            "the validation part and measured on the test part.",
            (Table("photos", "Repairs", headers, rows),) if rows else (),
            bars=tuple(bars),
        )


def _row(name: str, evaluation: dict | None, share: float | None) -> list:
    return [
        name,
        *(
            Spread.of([evaluation and evaluation[condition][metric]], 1)
            for condition in ("clean", "triggered")
            for metric in ("AP", "AP50")
        ),
        *(Spread.of([found(evaluation, condition)], 3) for condition in ("clean", "triggered")),
        Spread.of([evaluation and evaluation["asr"]], 3),
        Spread.of([share]),
    ]
