# SPDX-License-Identifier: Apache-2.0
"""Table 2: what each removal method leaves of a detector and of its backdoor."""

from __future__ import annotations

from collections.abc import Iterator

from d2defense.evaluation import AP_METRICS
from d2defense.registry import EXPERIMENT_REGISTRY

from ..plan import Detector, Plan
from ..profiles import DetectorKind
from ..repairs import BASELINES, COMPARED, OURS, RENEWAL, VANILLA, Repair
from ..rows import CONDITIONS, StudyRows
from ..steps import Step
from .base import Bar, Column, Experiment, Line, Section, pivot, spread

RENEWAL_SHARE, OURS_SHARE, OVER_VANILLA, CLEAN_DROP = 0.85, 0.95, 1.5, 2.0
_PRECISION = (
    *(Column(name, name, 1) for name in AP_METRICS),
    Column("objects found", "objects_found", 3),
)
_RECOVERY = (
    Column("recovered", "recovered"),
    Column("ASR after", "asr"),
    Column("objects found, clean images", "objects_found:clean"),
    Column("fall of clean AP", "ap_drop", 1),
)


@EXPERIMENT_REGISTRY.register("table2")
class Table2(Experiment):
    """AP of the original, of every method, and of a clean detector (the paper, section 4.3)."""

    title = "Table 2: removal"
    place = 2

    def steps(self, plan: Plan) -> list[Step]:
        """Every pair of detectors and every repair, measured with the paper's trigger."""
        steps = [plan.measure(d) for pair in plan.pairs() for d in pair]
        for repair in (*COMPARED, *BASELINES):
            steps += [plan.measure_repaired(d, repair) for _, d in _pairs(plan, repair)]
        return steps

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """One row a kind of detector, method and condition."""
        for repair in (*COMPARED, *BASELINES):
            for clean, bad in _pairs(plan, repair):
                after = plan.measure_repaired(bad, repair)
                rows.compare(plan.measure(clean), plan.measure(bad), after)
        lines = [line for kind in plan.profile.detectors for line in _lines(plan, kind)]
        conditions = [
            Line((*names, condition), steps, condition)
            for names, steps in lines
            for condition in CONDITIONS
        ]
        repaired = [
            Line((kind.title, repair.title), _repaired(plan, kind, repair))
            for kind in plan.profile.detectors
            for repair in (*COMPARED, *BASELINES)
        ]
        heads = ("detector", "method")
        return Section(
            self.title,
            "Average precision on the test images, clean and with the paper's trigger on every "
            "object. Recovered: of the objects found that the attack took, the share that the "
            "repair gave back, between the backdoored detector and a clean one of the same kind "
            "and seed. All methods have the same images and, but for ours, which has the schedule "
            "of `d2defense repair`, the same steps; NAD trains a teacher besides. "
            f"The baselines {', '.join(r.title for r in BASELINES)} are measured on the first "
            "seed only.",
            (
                pivot(
                    "table2", "Average precision", (*heads, "images"), _PRECISION, conditions, rows
                ),
                pivot("table2_recovery", "What is recovered", heads, _RECOVERY, repaired, rows),
            ),
            bars=tuple(bar for kind in plan.profile.detectors for bar in _bars(plan, rows, kind)),
        )


def _pairs(plan: Plan, repair: Repair) -> list[tuple[Detector, Detector]]:
    """The pairs whose backdoored detectors a method is tried on."""
    seeds = plan.profile.seeds[:1] if repair in BASELINES else plan.profile.seeds
    return [pair for pair in plan.pairs() if pair[1].seed in seeds]


def _repaired(plan: Plan, kind: DetectorKind, repair: Repair) -> list[Step]:
    pairs = _pairs(plan, repair)
    return [plan.measure_repaired(bad, repair) for _, bad in pairs if bad.kind is kind]


def _lines(plan: Plan, kind: DetectorKind) -> Iterator[tuple[tuple[str, str], list[Step]]]:
    for name, detectors in zip(
        ("clean detector", "original"), zip(*plan.of_kind(kind), strict=True), strict=True
    ):
        yield (kind.title, name), [plan.measure(detector) for detector in detectors]
    for repair in (*COMPARED, *BASELINES):
        yield (kind.title, repair.title), _repaired(plan, kind, repair)


def _bars(plan: Plan, rows: StudyRows, kind: DetectorKind) -> Iterator[Bar]:
    def mean(repair: Repair) -> float | None:
        return spread(rows, _repaired(plan, kind, repair), "recovered").mean

    renewal, vanilla, title = mean(RENEWAL), mean(VANILLA), kind.title
    ratio = renewal / vanilla if renewal is not None and vanilla else None
    yield Bar.at_least(f"recovered by the paper's renewal, {title}", RENEWAL_SHARE, renewal)
    yield Bar.at_least(f"the same over vanilla's, {title}", OVER_VANILLA, ratio)
    yield Bar.at_least(f"recovered by ours, {title}", OURS_SHARE, mean(OURS))
    for name, repair in (("the paper's renewal", RENEWAL), ("ours", OURS)):
        drop = spread(rows, _repaired(plan, kind, repair), "ap_drop", 1)
        yield Bar.at_most(f"fall of clean AP by {name}, {title}", CLEAN_DROP, drop)
