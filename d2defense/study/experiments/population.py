# SPDX-License-Identifier: Apache-2.0
"""How well a score tells backdoored from clean, over a population of detectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.statistics.ranking import area_interval, area_under_curve, roc_curve, share_found

from ..figures import Curve, draw_roc
from ..plan import Detector, Plan
from ..rows import StudyRows
from ..steps import Step
from ..tables import Spread, Table
from .base import Bar, Column, Experiment, Line, Section, failed_attacks, pivot

LEAST_AUC, LEAST_MODELS = 0.97, 16
# Each goes up under an attack. tau as the paper uses it, itself; the others by their change.
SCORES = (
    Column("the scanner's score", "score", 3),
    Column("tau (paper)", "tau:triggered", 3),
    Column("rise of confident d", "confident_d:rise", 3),
    Column("rise of gap", "gap:rise", 3),
    Column("fall of objects found", "objects_found:fall", 3),
)


class _PopulationStudy(Experiment):
    """Scans of clean and backdoored detectors with a bank that does not know the trigger."""

    name: ClassVar[str]

    @abstractmethod
    def detectors(self, plan: Plan) -> list[Detector]:
        """The population."""

    def bars(self, area: float, counts: tuple[int, int]) -> tuple[Bar, ...]:
        """What the scanner's area over so many detectors is held to."""
        return ()

    def steps(self, plan: Plan) -> list[Step]:
        """A scan of every detector, and the measurement of every attack."""
        detectors = self.detectors(plan)
        attacked = [detector for detector in detectors if detector.attack]
        return [*map(plan.scan, detectors), *map(plan.measure, attacked)]

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """ROC curves with their areas, and every detector's scores."""
        known = [d for d in self.detectors(plan) if all(map(rows.has, _steps(plan, d)))]
        clean = [plan.scan(d) for d in known if not d.attack]
        took = [d for d in known if d.attack and rows.row(plan.measure(d)).took]
        backdoored = list(map(plan.scan, took))
        tables: list[Table] = []
        figures, bars = {}, ()
        if clean and backdoored:
            tables.append(_summary(self.name, rows, backdoored, clean))
            figures[f"{self.name}_roc"] = _draw(rows, backdoored, clean)
            area = float(area_under_curve(*_values(rows, "score", backdoored, clean)))
            bars = self.bars(area, (len(clean), len(backdoored)))
        heads = ("detector", "nature", "ASR", "verdict", "worst trigger")
        tables.append(
            pivot(
                f"{self.name}_scores",
                "Every detector",
                heads,
                SCORES,
                (Line(list(_names(plan, rows, d)), [plan.scan(d)]) for d in known),
                rows,
            )
        )
        called = [sum(rows.value(s, "alarm") for s in scans) for scans in (backdoored, clean)]
        return Section(
            self.title,
            f"{len(clean)} clean and {len(backdoored)} backdoored detectors, "
            "scanned with the "
            "default bank, which does not know the trigger, and the shipped calibration, which "
            "none of them was used for. The verdict is backdoored for "
            f"{called[0]:.0f} of the backdoored and {called[1]:.0f} of the "
            "clean ones. An area's interval is Newcombe's at 95 %. Attacks that did not take (ASR "
            "below one half) are listed and not counted.",
            tuple(tables),
            figures,
            bars,
            failed_attacks(rows, (plan.measure(d) for d in known if d.attack)),
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

    def bars(self, area: float, counts: tuple[int, int]) -> tuple[Bar, ...]:
        """The least area, over enough detectors."""
        what = f"AUC of the scanner's score over at least {LEAST_MODELS} clean and as many"
        return (
            Bar(
                f"{what} backdoored",
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


def _steps(plan: Plan, detector: Detector) -> list[Step]:
    """What must be known of a detector that counts."""
    return [plan.scan(detector), *([plan.measure(detector)] if detector.attack else [])]


def _values(rows: StudyRows, metric: str, *groups: Sequence[Step]) -> list[list[float]]:
    return [[rows.value(step, metric) for step in group] for group in groups]


def _draw(rows: StudyRows, backdoored: Sequence[Step], clean: Sequence[Step]) -> bytes:
    """A ROC curve a score; its area is in the legend, since curves may hide one another."""
    curves = {}
    for score in SCORES:
        values = _values(rows, score.metric, backdoored, clean)
        area = float(area_under_curve(*values))
        curves[f"{score.head} (AUC {area:.3f})"] = Curve(*map(tuple, roc_curve(*values)))
    return draw_roc(curves)


def _summary(
    name: str, rows: StudyRows, backdoored: Sequence[Step], clean: Sequence[Step]
) -> Table:
    cells = []
    for score in SCORES:
        values = _values(rows, score.metric, backdoored, clean)
        area = float(area_under_curve(*values))
        low, high = area_interval(area, *map(len, values))
        numbers = area, float(share_found(*values, 0.01)), max(values[1]), min(values[0])
        shown = [Spread((number,), 3) for number in numbers]
        cells.append([score.head, shown[0], f"{low:.3f} to {high:.3f}", *shown[1:]])
    headers = (
        "score",
        "AUC",
        "95 % interval",
        "true positives at 1 % false alarms",
        "highest clean",
        "lowest backdoored",
    )
    return Table(name, "Clean against backdoored", headers, cells)


def _names(plan: Plan, rows: StudyRows, detector: Detector) -> Iterator[str | Spread]:
    """What a detector's line says before its scores."""
    nature = detector.attack.title if detector.attack else "clean"
    yield detector.name
    yield nature + (", fine-tuned" if detector.fine_tuned else "")
    yield Spread.of([rows.value(plan.measure(detector), "asr") if detector.attack else None])
    yield rows.setting(plan.scan(detector), "verdict")
    yield rows.setting(plan.scan(detector), "worst_trigger")
