# SPDX-License-Identifier: Apache-2.0
"""How well a score tells backdoored from clean, over a population of detectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.statistics.ranking import (
    area_interval,
    area_under_curve,
    roc_curve,
    share_found,
)

from ..figures import Curve, draw_roc
from ..plan import Detector, Plan
from ..steps import Step, StepResults
from ..tables import Spread, Table
from .base import Bar, Experiment, Section

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


class _PopulationStudy(Experiment):
    """Scans of clean and backdoored detectors with a bank that does not know the trigger."""

    name: ClassVar[str]

    @abstractmethod
    def detectors(self, plan: Plan) -> list[Detector]:
        """The population."""

    def bars(self, scanned: _Scanned) -> tuple[Bar, ...]:
        """What it is held to, where there are detectors of either nature."""
        return ()

    def steps(self, plan: Plan) -> list[Step]:
        """A scan of every detector, and the measurement of every attack."""
        detectors = self.detectors(plan)
        attacked = [detector for detector in detectors if detector.attack]
        return [*map(plan.scan, detectors), *map(plan.measure, attacked)]

    def report(self, plan: Plan, results: StepResults) -> Section:
        """ROC curves with their areas, and every detector's scores."""
        scanned = _Scanned.of(self.detectors(plan), plan, results)
        tables: list[Table] = []
        figures, bars = {}, ()
        if scanned.clean and scanned.backdoored:
            tables.append(_summary(self.name, scanned))
            figures[f"{self.name}_roc"] = _draw(scanned)
            bars = self.bars(scanned)
        headers = ("detector", "nature", "ASR", "verdict", "worst trigger", *SCORES)
        tables.append(Table(f"{self.name}_scores", "Every detector", headers, scanned.rows))
        return Section(
            self.title,
            f"{len(scanned.clean)} clean and {len(scanned.backdoored)} backdoored detectors, "
            "scanned with the "
            "default bank, which does not know the trigger, and the shipped calibration, which "
            "none of them was used for. The verdict is backdoored for "
            f"{_called(scanned.backdoored)} of the backdoored and {_called(scanned.clean)} of the "
            "clean ones. An area's interval is Newcombe's at 95 %. Attacks that did not take (ASR "
            "below one half) are listed and not counted.",
            tuple(tables),
            figures,
            bars,
            tuple(scanned.failed),
        )


@EXPERIMENT_REGISTRY.register("population")
class Population(_PopulationStudy):
    """All kinds of detectors, attacked as in the paper and in other ways."""

    name = "population"
    title = "Population study"
    place = 7

    def detectors(self, plan: Plan) -> list[Detector]:
        """Those of table 1, further clean ones, and the attacks beyond the paper's."""
        attacked = [backdoored for _, backdoored in (*plan.variants, *plan.unseen)]
        return [*(d for pair in plan.pairs() for d in pair), *plan.controls, *attacked]

    def bars(self, scanned: _Scanned) -> tuple[Bar, ...]:
        """The least area, over enough detectors."""
        area = area_under_curve(*scanned.values(SCORES["the scanner's score"]))
        counts = len(scanned.clean), len(scanned.backdoored)
        return (
            Bar(
                f"AUC of the scanner's score over at least {LEAST_MODELS} clean and as many "
                "backdoored",
                f"at least {LEAST_AUC}",
                f"{area:.3f} over {counts[0]} and {counts[1]}",
                area >= LEAST_AUC if min(counts) >= LEAST_MODELS else None,
            ),
        )


@EXPERIMENT_REGISTRY.register("photos_population")
class PhotoPopulation(_PopulationStudy):
    """The population study with detectors of the photos."""

    name = "photos_population"
    title = "Population study of the photos"
    place = 11

    def detectors(self, plan: Plan) -> list[Detector]:
        """Trained from scratch, and fine-tuned."""
        return plan.photo_population


@dataclass(frozen=True)
class _Scanned:
    """What is known of some detectors.

    Attributes:
        clean: scans of clean ones.
        backdoored: of those whose attack took.
        failed: names of the others.
        rows: of the table of all.
    """

    clean: list[Scan] = field(default_factory=list)
    backdoored: list[Scan] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    @staticmethod
    def of(detectors: Sequence[Detector], plan: Plan, results: StepResults) -> _Scanned:
        """Those of the detectors whose results are there."""
        known = _Scanned()
        for detector in detectors:
            scan = results.get(plan.scan(detector))
            measured = results.get(plan.measure(detector)) if detector.attack else None
            if scan is None or (detector.attack and measured is None):
                continue
            if not detector.attack:
                known.clean.append(scan)
            elif measured["attack_took"]:
                known.backdoored.append(scan)
            else:
                known.failed.append(detector.name)
            known.rows.append(_row(detector, scan, measured))
        return known

    def values(self, score: Callable[[Scan], float]) -> tuple[list[float], list[float]]:
        """A score of the backdoored ones and of the clean ones."""
        return [score(scan) for scan in self.backdoored], [score(scan) for scan in self.clean]


def _called(scans: Sequence[Scan]) -> int:
    return sum(scan["verdict"] == "backdoored" for scan in scans)


def _draw(scanned: _Scanned) -> bytes:
    """A ROC curve a score; its area is in the legend, since curves may hide one another."""
    curves = {}
    for name, score in SCORES.items():
        values = scanned.values(score)
        curves[f"{name} (AUC {area_under_curve(*values):.3f})"] = Curve(
            *map(tuple, roc_curve(*values))
        )
    return draw_roc(curves)


def _summary(name: str, scanned: _Scanned) -> Table:
    rows = []
    for score_name, score in SCORES.items():
        values = scanned.values(score)
        area = float(area_under_curve(*values))
        low, high = area_interval(area, *map(len, values))
        rows.append(
            [
                score_name,
                Spread((area,), 3),
                f"{low:.3f} to {high:.3f}",
                Spread((float(share_found(*values, 0.01)),), 3),
                Spread((max(values[1]),), 3),
                Spread((min(values[0]),), 3),
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
    return Table(name, "Clean against backdoored", headers, rows)


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
