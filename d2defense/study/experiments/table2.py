# SPDX-License-Identifier: Apache-2.0
"""Table 2: what each removal method leaves of a detector and of its backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2defense.evaluation import AP_METRICS
from d2defense.registry import EXPERIMENT_REGISTRY

from ..measures import found, recovered
from ..plan import Detector, Plan
from ..repairs import BASELINES, COMPARED, OURS, RENEWAL, VANILLA, Repair
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Bar, Experiment, Section

RENEWAL_SHARE, OURS_SHARE, OVER_VANILLA, CLEAN_DROP = 0.85, 0.95, 1.5, 2.0


@EXPERIMENT_REGISTRY.register("table2")
class Table2(Experiment):
    """AP of the original, of every method, and of a clean detector (the paper, section 4.3)."""

    title = "Table 2: removal"
    place = 2

    def steps(self, plan: Plan) -> list[Step]:
        """Every pair of detectors and every repair, measured with the paper's trigger."""
        steps = [plan.measure(d) for pair in plan.pairs() for d in pair]
        for repair in (*COMPARED, *BASELINES):
            steps += [plan.measure_repaired(d, repair) for d in _attacked(plan, repair)]
        return steps

    def report(self, plan: Plan, results: StepResults) -> Section:
        """One row a kind of detector, method and condition."""
        rows, shares, bars = [], [], []
        for kind in plan.profile.detectors:
            pairs = plan.of_kind(kind)
            clean = {b.seed: results.get(plan.measure(c)) for c, b in pairs}
            before = {b.seed: results.get(plan.measure(b)) for _, b in pairs}
            rows += _rows(kind.title, "clean detector", list(clean.values()))
            rows += _rows(kind.title, "original", list(before.values()))
            recoveries: dict[Repair, Spread] = {}
            drops: dict[Repair, Spread] = {}
            for repair in (*COMPARED, *BASELINES):
                after = {
                    b.seed: results.get(plan.measure_repaired(b, repair))
                    for b in _attacked(plan, repair)
                    if b.kind is kind
                }
                rows += _rows(kind.title, repair.title, list(after.values()))
                recoveries[repair] = Spread.of(
                    recovered(before[seed], value, clean[seed]) for seed, value in after.items()
                )
                drops[repair] = Spread.of(
                    (_drop(before[seed], value) for seed, value in after.items()), 1
                )
                shares.append(
                    [
                        kind.title,
                        repair.title,
                        recoveries[repair],
                        Spread.of(value and value["asr"] for value in after.values()),
                        Spread.of(found(value, "clean") for value in after.values()),
                        drops[repair],
                    ]
                )
            bars += _bars(kind.title, recoveries, drops)
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
                Table(
                    "table2",
                    "Average precision",
                    ("detector", "method", "images", *AP_METRICS, "objects found"),
                    rows,
                ),
                Table(
                    "table2_recovery",
                    "What is recovered",
                    (
                        "detector",
                        "method",
                        "recovered",
                        "ASR after",
                        "objects found, clean images",
                        "fall of clean AP",
                    ),
                    shares,
                ),
            ),
            bars=tuple(bars),
        )


def _attacked(plan: Plan, repair: Repair) -> list[Detector]:
    """The backdoored detectors that a method is tried on."""
    seeds = plan.profile.seeds[:1] if repair in BASELINES else plan.profile.seeds
    return [attacked for _, attacked in plan.pairs() if attacked.seed in seeds]


def _rows(kind: str, method: str, evaluations: Sequence[Any]) -> list[list[Any]]:
    return [
        [
            kind,
            method,
            condition,
            *(Spread.of((e and e[condition][name] for e in evaluations), 1) for name in AP_METRICS),
            Spread.of((found(e, condition) for e in evaluations), 3),
        ]
        for condition in ("clean", "triggered")
    ]


def _drop(before: Any, after: Any) -> float | None:
    if not (before and after):
        return None
    start, end = before["clean"]["AP"], after["clean"]["AP"]
    return None if start is None or end is None else start - end


def _bars(kind: str, recoveries: dict[Repair, Spread], drops: dict[Repair, Spread]) -> list[Bar]:
    renewal, ours, vanilla = (recoveries[repair].mean for repair in (RENEWAL, OURS, VANILLA))
    ratio = renewal / vanilla if renewal is not None and vanilla else None
    return [
        _at_least(f"recovered by the paper's renewal, {kind}", RENEWAL_SHARE, renewal),
        _at_least(f"the same over vanilla's, {kind}", OVER_VANILLA, ratio),
        _at_least(f"recovered by ours, {kind}", OURS_SHARE, ours),
        *(
            Bar(
                f"fall of clean AP by {name}, {kind}",
                f"at most {CLEAN_DROP}",
                str(drops[repair]),
                None if drops[repair].mean is None else drops[repair].mean <= CLEAN_DROP,
            )
            for name, repair in (("the paper's renewal", RENEWAL), ("ours", OURS))
        ),
    ]


def _at_least(what: str, least: float, value: float | None) -> Bar:
    return Bar(
        what,
        f"at least {least}",
        "not measured" if value is None else f"{value:.3f}",
        None if value is None else value >= least,
    )
