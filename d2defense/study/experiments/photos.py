# SPDX-License-Identifier: Apache-2.0
"""The repair of a detector of real photos."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Plan
from ..repairs import COMPARED, FAST_VANILLA, OURS
from ..rows import CONDITIONS, StudyRows
from ..steps import Step
from .base import Bar, Column, Experiment, Line, Section, pivot

REPAIRS = (*COMPARED, FAST_VANILLA)
LEAST_RECOVERED = 0.9
_COLUMNS = (
    *(Column(f"{n}, {part}", f"{n}:{part}", 1) for part in CONDITIONS for n in ("AP", "AP50")),
    *(Column(f"objects found, {part}", f"objects_found:{part}", 3) for part in CONDITIONS),
    Column("ASR", "asr", 3),
    Column("recovered", "recovered"),
)


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

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """One row a detector."""
        lines, bars = [], []
        for clean, bad in plan.photos:
            reference, before = plan.measure(clean), plan.measure(bad)
            lines += [Line(("clean detector",), [reference]), Line(("original",), [before])]
            for repair in REPAIRS:
                after = plan.measure_repaired(bad, repair)
                rows.compare(reference, before, after)
                lines.append(Line((repair.title,), [after]))
            share = rows.value(plan.measure_repaired(bad, OURS), "recovered")
            what = f"recovered by ours, photos, seed {bad.seed}"
            text = "" if share is None else f"{share:.2f}"
            bars.append(Bar.at_least(what, LEAST_RECOVERED, share, text))
        table = pivot("photos", "Repairs", ("detector",), _COLUMNS, lines, rows)
        return Section(
            self.title,
            "Detectors of the photos, trained from scratch on the training part, repaired with "
            "the validation part and measured on the test part.",
            (table,) if lines else (),
            bars=tuple(bars),
        )
