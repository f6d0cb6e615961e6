# SPDX-License-Identifier: Apache-2.0
"""Table 3: what each augmentation adds to a repair."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Plan
from ..repairs import (
    FAST_VANILLA,
    OURS,
    PHOTOMETRIC_RENEWAL,
    PLAIN_RENEWAL,
    RENEWAL,
    RENEWAL_WITH_PATCHES,
)
from ..rows import CONDITIONS, StudyRows
from ..steps import Step
from .base import Column, Experiment, Line, Section, pivot

_REPAIRS = {
    PLAIN_RENEWAL.title: PLAIN_RENEWAL,
    PHOTOMETRIC_RENEWAL.title: PHOTOMETRIC_RENEWAL,
    "+ random flip (the paper's renewal)": RENEWAL,
    "+ patch augmentation": RENEWAL_WITH_PATCHES,
    "no reset, all at the training's rate": FAST_VANILLA,
    "the same + patch augmentation (ours)": OURS,
}
_COLUMNS = (
    *(Column(f"{n}, {part}", f"{n}:{part}", 1) for part in CONDITIONS for n in ("AP", "AP50")),
    Column("objects found, triggered", "objects_found:triggered"),
    Column("ASR", "asr"),
    Column("recovered", "recovered"),
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
        repairs = _REPAIRS.values()
        return steps + [plan.measure_repaired(b, repair) for repair in repairs for _, b in pairs]

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """One row an augmentation."""
        lines = []
        for title, repair in _REPAIRS.items():
            pairs = plan.of_kind(plan.main_kind)
            for clean, bad in pairs:
                after = plan.measure_repaired(bad, repair)
                rows.compare(plan.measure(clean), plan.measure(bad), after)
            lines.append(Line((title,), [plan.measure_repaired(bad, repair) for _, bad in pairs]))
        return Section(
            self.title,
            f"Repairs of {plan.main_kind.title}. Each of the first four rows adds to the one above "
            "it; the last two have the schedule of `d2defense repair`.",
            (pivot("table3", "Augmentations", ("repair",), _COLUMNS, lines, rows),),
        )
