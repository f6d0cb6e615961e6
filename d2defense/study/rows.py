# SPDX-License-Identifier: Apache-2.0
"""The tidy rows of a study: one a number that a step has measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import d2defense

from .results import ResultRow, ResultStore
from .steps import Step, StepResults, in_order

ROWS_FOLDER = "rows"
#: The method of a detector that was not repaired.
ORIGINAL = "original"
#: The metric that every step has.
SECONDS = "seconds"
CONDITIONS = ("clean", "triggered")


class StudyRows:
    """The rows of a study by step and metric.

    Args:
        rows: each with its step's name among its conditions.
        folder: of the study.
    """

    def __init__(self, rows: Iterable[ResultRow], folder: Path) -> None:
        self.folder = folder
        self._of: dict[str, dict[str, ResultRow]] = {}
        self._add(rows)

    @classmethod
    def read(cls, folder: Path, wanted: Iterable[Step]) -> StudyRows:
        """Those that a study's folder has, and those of what its steps have done since.

        Where the result of a step is gone its rows serve, but not where it is stale.

        Args:
            folder: of the study; gets the rows as files.
            wanted: steps whose results matter.

        Raises:
            ResultsError: a file of rows cannot be read.
        """
        store, results = ResultStore(folder / ROWS_FOLDER), StepResults(folder)
        known, new = cls(store.read(), folder), []
        for step in in_order(wanted):
            record = results.record(step)
            if record is not None:
                new += rows_of(step, record["result"], record["seconds"])
            elif results.is_stale(step):
                known._of.pop(step.name, None)
        store.put(new)
        known._add(new)
        return known

    def has(self, step: Step) -> bool:
        """Whether a step is done."""
        return step.name in self._of

    def row(self, step: Step, metric: str = SECONDS) -> ResultRow | None:
        """One row of a step; None if there is none."""
        return self._of.get(step.name, {}).get(metric)

    def value(self, step: Step, metric: str) -> float | None:
        """One number of a step; None where there is none."""
        row = self.row(step, metric)
        return row and row.value

    def setting(self, step: Step, name: str) -> Any:
        """What a step says beside its numbers; None where it is not done or says nothing."""
        row = self.row(step)
        return row and row.settings.get(name)

    def content(self, step: Step) -> bytes | None:
        """The first file that a step left; None where there is none."""
        for name in self.setting(step, "files") or ():
            if (self.folder / name).is_file():
                return (self.folder / name).read_bytes()
        return None

    def compare(self, clean: Step, before: Step, after: Step) -> None:
        """Add to the rows of a repaired detector what follows from two others.

        ``recovered``: of the objects found that the attack took, the share that a repair gave back,
        ``(after - before) / (clean - before)``, all under the trigger; more than 1 where the
        repaired detector finds more than the clean one, none where the attack took nothing.
        ``ap_drop``: the fall of AP on clean images.

        Args:
            clean: measures a clean detector of the same kind and seed, under the same trigger.
            before: measures the backdoored one.
            after: measures the repaired one.
        """
        share, precision = "objects_found:triggered", "AP:clean"
        whole, start, end = (self.value(step, share) for step in (clean, before, after))
        if None not in (whole, start, end) and whole > start:
            self._derive(after, share, "recovered", (end - start) / (whole - start))
        start, end = (self.value(step, precision) for step in (before, after))
        if None not in (start, end):
            self._derive(after, precision, "ap_drop", start - end)

    def _derive(self, step: Step, of: str, metric: str, value: float) -> None:
        self._add([replace(self.row(step, of), metric=metric, value=value)])

    def _add(self, rows: Iterable[ResultRow]) -> None:
        for row in rows:
            self._of.setdefault(row.conditions["step"], {})[row.metric] = row


def rows_of(step: Step, result: Mapping[str, Any], seconds: float) -> list[ResultRow]:
    """The rows of a step that is done.

    Args:
        step: with the facts that its rows repeat.
        result: of its action.
        seconds: that it took.
    """
    values = dict(_NUMBERS.get(step.action, lambda result: ())(result))
    said = {key: result[key] for key in _SAID if key in result}
    facts = {"method": step.action, **step.facts}
    facts["conditions"] = {"step": step.name, **facts.get("conditions", {})}
    is_attacked = facts.get("attack") and facts["method"] == ORIGINAL
    base = ResultRow(
        task=step.action,
        metric=SECONDS,
        value=seconds,
        seconds=seconds,
        took=result.get("attack_took") if is_attacked else None,
        version=d2defense.__version__,
        **{"detector": step.name, **facts},
    )
    told = replace(base, settings={**said, "arguments": step.arguments})
    return [told, *(replace(base, metric=name, value=value) for name, value in values.items())]


# What is kept of a result beside its numbers.
_SAID = (
    *("verdict", "worst_trigger", "dominant_modules", "histogram", "modules", "files"),
    *("command", "training"),
)


def _of_evaluation(result: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    yield "asr", result["asr"]
    for condition in CONDITIONS:
        measured = dict(result[condition])
        for name, value in {**measured.pop("statistics"), **measured}.items():
            yield f"{name}:{condition}", value


def _of_scan(result: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The score, the verdict as a number, and the largest of each statistic over the triggers."""
    yield "score", result["score"]
    yield "alarm", float(result["verdict"] == "backdoored")
    triggers = [trigger["statistics"] for trigger in result["triggers"]]
    for name in triggers[0] if triggers else ():
        for part, key, sign in (
            ("triggered", "triggered", 1),
            ("rise", "change", 1),
            ("fall", "change", -1),
        ):
            known = [sign * of[name][key] for of in triggers if of[name][key] is not None]
            yield f"{name}:{part}", max(known, default=0.0)


_NUMBERS = {"evaluate": _of_evaluation, "scan": _of_scan}
