# SPDX-License-Identifier: Apache-2.0
"""How well a score tells backdoored from clean, over a population of detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..figures import Curve, draw_roc
from ..measures import auc, auc_interval, roc_curve, true_positive_rate
from ..plan import Detector, Plan
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Bar, Experiment, Section, experiment

LEAST_AUC, LEAST_MODELS = 0.97, 16

Scan = Mapping[str, Any]


def _largest(statistic: str, field: str, sign: int = 1) -> Callable[[Scan], float]:
    """The largest of a statistic over the bank's triggers."""

    def score(scan: Scan) -> float:
        values = [trigger["statistics"][statistic][field] for trigger in scan["triggers"]]
        known = [sign * value for value in values if value is not None]
        return max(known) if known else 0.0

    return score


# Each goes up under an attack. tau as the paper uses it, itself; the others by their change.
SCORES: dict[str, Callable[[Scan], float]] = {
    "the scanner's score": lambda scan: scan["score"],
    "tau (paper)": _largest("tau", "triggered"),
    "rise of confident d": _largest("confident_d", "change"),
    "rise of gap": _largest("gap", "change"),
    "fall of objects found": _largest("objects_found", "change", -1),
}


@experiment("population")
class Population(Experiment):
    """Scans of clean and backdoored detectors with a bank that does not know the trigger."""

    title = "Population study"

    def steps(self, plan: Plan) -> list[Step]:
        """A scan of every detector, and the measurement of every attack."""
        detectors = _population(plan) + _photos(plan)
        attacked = [detector for detector in detectors if detector.attack]
        return [*map(plan.scan, detectors), *map(plan.measure, attacked)]

    def report(self, plan: Plan, results: StepResults) -> Section:
        """ROC curves with their areas, and every detector's scores."""
        population, failed, rows = [], [], []
        for detector in _population(plan) + _photos(plan):
            scan = results.get(plan.scan(detector))
            measured = results.get(plan.measure(detector)) if detector.attack else None
            if scan is None or (detector.attack and measured is None):
                continue
            works = not detector.attack or measured["attack_succeeded"]
            if not works:
                failed.append(detector.name)
            elif detector.kind:
                population.append((detector, scan))
            rows.append(_row(detector, scan, measured))
        clean = [scan for detector, scan in population if not detector.attack]
        backdoored = [scan for detector, scan in population if detector.attack]
        tables: list[Table] = []
        figures, bars = {}, ()
        if clean and backdoored:
            tables.append(_summary(clean, backdoored))
            figures["population_roc"] = draw_roc(
                {
                    name: Curve(*map(tuple, roc_curve(*_values(score, clean, backdoored))))
                    for name, score in SCORES.items()
                }
            )
            bars = (_bar(clean, backdoored),)
        headers = ("detector", "nature", "ASR", "verdict", "worst trigger", *SCORES)
        tables.append(Table("population_scores", "Every detector", headers, rows))
        return Section(
            self.title,
            f"{len(clean)} clean and {len(backdoored)} backdoored detectors, scanned with the "
            "default bank, which does not know the trigger, and the shipped calibration, which "
            "none of them was used for. The verdict is backdoored for "
            f"{_called(backdoored)} of the backdoored and {_called(clean)} of the clean ones. An "
            "area's interval is Newcombe's at 95 %. Attacks that "
            "did not take (ASR below one half) are listed and not counted; so are the photos'.",
            tuple(tables),
            figures,
            bars,
            tuple(failed),
        )


def _population(plan: Plan) -> list[Detector]:
    detectors = [d for pair in plan.pairs() for d in pair]
    attacked = [backdoored for _, backdoored in (*plan.variants, *plan.unseen)]
    return [*detectors, *plan.controls, *attacked]


def _photos(plan: Plan) -> list[Detector]:
    return [detector for pair in plan.photos for detector in pair]


def _values(
    score: Callable[[Scan], float], clean: Sequence[Scan], backdoored: Sequence[Scan]
) -> tuple[list[float], list[float]]:
    return [score(scan) for scan in clean], [score(scan) for scan in backdoored]


def _called(scans: Sequence[Scan]) -> int:
    return sum(scan["verdict"] == "backdoored" for scan in scans)


def _summary(clean: Sequence[Scan], backdoored: Sequence[Scan]) -> Table:
    rows = []
    for name, score in SCORES.items():
        values = _values(score, clean, backdoored)
        low, high = auc_interval(*values)
        rows.append(
            [
                name,
                Spread((auc(*values),), 3),
                f"{low:.3f} to {high:.3f}",
                Spread((true_positive_rate(*values),), 3),
                Spread((max(values[0]),), 3),
                Spread((min(values[1]),), 3),
            ]
        )
    headers = (
        "score",
        "AUC",
        "95 % interval",
        "true positives at 1 % false alarms",
        "highest clean",
        "lowest backdoored",
    )
    return Table("population", "Clean against backdoored", headers, rows)


def _row(detector: Detector, scan: Scan, measured: Mapping[str, Any] | None) -> list[Any]:
    nature = detector.attack.title if detector.attack else "clean"
    if detector.fine_tuned:
        nature += ", fine-tuned"
    return [
        detector.name,
        nature,
        Spread.of([measured and measured["asr"]]),
        scan["verdict"],
        scan["worst_trigger"],
        *(Spread((score(scan),), 3) for score in SCORES.values()),
    ]


def _bar(clean: Sequence[Scan], backdoored: Sequence[Scan]) -> Bar:
    area = auc(*_values(SCORES["the scanner's score"], clean, backdoored))
    enough = min(len(clean), len(backdoored)) >= LEAST_MODELS
    return Bar(
        f"AUC of the scanner's score over at least {LEAST_MODELS} clean and as many backdoored",
        f"at least {LEAST_AUC}",
        f"{area:.3f} over {len(clean)} and {len(backdoored)}",
        area >= LEAST_AUC if enough else None,
    )
