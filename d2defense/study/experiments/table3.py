# SPDX-License-Identifier: Apache-2.0
"""Table 3: what each augmentation adds to a repair."""

from __future__ import annotations

from dataclasses import replace

from d2defense.registry import EXPERIMENT_REGISTRY

from ..measures import found, recovered
from ..plan import Plan
from ..repairs import (
    FAST_VANILLA,
    OURS,
    PHOTOMETRIC_RENEWAL,
    PLAIN_RENEWAL,
    RENEWAL,
    RENEWAL_WITH_PATCHES,
)
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Experiment, Section

ROWS = (
    PLAIN_RENEWAL,
    PHOTOMETRIC_RENEWAL,
    replace(RENEWAL, title="+ random flip (the paper's renewal)"),
    replace(RENEWAL_WITH_PATCHES, title="+ patch augmentation"),
    replace(FAST_VANILLA, title="no reset, all at the training's rate"),
    replace(OURS, title="the same + patch augmentation (ours)"),
)


@EXPERIMENT_REGISTRY.register("table3")
class Table3(Experiment):
    """Renewal with one augmentation after another (the paper, section 4.4)."""

    title = "Table 3: augmentations"
    place = 3

    def steps(self, plan: Plan) -> list[Step]:
        """The repairs of the backdoored detectors of one kind."""
        pairs = plan.of_kind(plan.main_kind)
        steps = [plan.measure(detector) for pair in pairs for detector in pair]
        return steps + [plan.measure_repaired(b, repair) for repair in ROWS for _, b in pairs]

    def report(self, plan: Plan, results: StepResults) -> Section:
        """One row an augmentation."""
        pairs = plan.of_kind(plan.main_kind)
        rows = []
        for repair in ROWS:
            after = {b: results.get(plan.measure_repaired(b, repair)) for _, b in pairs}
            rows.append(
                [
                    repair.title,
                    *(
                        Spread.of((e and e[condition][name] for e in after.values()), 1)
                        for condition in ("clean", "triggered")
                        for name in ("AP", "AP50")
                    ),
                    Spread.of(found(e) for e in after.values()),
                    Spread.of(e and e["asr"] for e in after.values()),
                    Spread.of(
                        recovered(
                            results.get(plan.measure(b)), after[b], results.get(plan.measure(c))
                        )
                        for c, b in pairs
                    ),
                ]
            )
        return Section(
            self.title,
            f"Repairs of {plan.main_kind.title}. Each of the first four rows adds to the one above "
            "it; the last two have the schedule of `d2defense repair`.",
            (
                Table(
                    "table3",
                    "Augmentations",
                    (
                        "repair",
                        "AP, clean",
                        "AP50, clean",
                        "AP, triggered",
                        "AP50, triggered",
                        "objects found, triggered",
                        "ASR",
                        "recovered",
                    ),
                    rows,
                ),
            ),
        )
