# SPDX-License-Identifier: Apache-2.0
"""Tidy results of studies and benchmarks: one row a measurement, one writer and one reader."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from d2defense.files import open_readable, write_text

_SUFFIX = ".jsonl"
_LARGEST_FILE = 1 << 30
#: The metric of a row that says why there is no measurement.
FAILED = "failed"
# What a row repeats of a zoo's facts by the same name; its ``kind`` is their ``detector``.
_FACTS = (
    "zoo",
    "truth",
    "attack",
    "effect",
    "family",
    "target_class",
    "schedule",
    "took",
    "sequestered",
    "asr",
    "control_asr",
)
# An attack that did not take is weak from this ASR on, if it is so far above that of the control.
_WEAK_ASR, _WEAK_EXCESS = 0.2, 0.1
_STRONG_ASR = 0.8


class ResultsError(ValueError):
    """A file of results cannot be read; the message names the file, the line and the reason."""


@dataclass(frozen=True)
class ResultRow:
    """One measurement of one method on one detector, with all that it depends on.

    Attributes:
        task: of a benchmark, or the action of a study's step.
        method: its name in the task's registry.
        metric: what was measured, "score:NAME" for a part of a score; :data:`FAILED` if nothing
            could be.
        value: of it; None for no data.
        low: lower end of its interval, if it has one.
        high: upper end of it.
        detector: its name.
        sha256: of its weights.
        zoo: that it is of.
        truth: "clean", "spurious" or "backdoored"; None if withheld, as are then all that follow up
            to control_asr but kind and sequestered.
        kind: of the detector.
        attack: "" without any.
        effect: of the attack.
        family: of its trigger.
        target_class: of the attack.
        schedule: how the detector was trained.
        took: whether the attack took.
        sequestered: whether nothing may have been tuned on the detector.
        asr: of its own attack, 0..1.
        control_asr: of the same attack on clean detectors.
        conditions: options of the task that tell its measurements apart.
        settings: of the method.
        needs: what the method was given that others do without, in words.
        dataset: name of the images.
        fingerprint: SHA-256 of them.
        images: how many.
        seconds: that the method took for this detector.
        budget: seconds that it was allowed; None for as many as it needs.
        seed: of its random choices.
        version: of d2defense.
        reason: why there is no measurement.
    """

    task: str
    method: str
    metric: str
    value: float | None
    detector: str
    sha256: str = ""
    low: float | None = None
    high: float | None = None
    zoo: str | None = None
    truth: str | None = None
    kind: str | None = None
    attack: str | None = None
    effect: str | None = None
    family: str | None = None
    target_class: str | None = None
    schedule: str | None = None
    took: bool | None = None
    sequestered: bool | None = None
    asr: float | None = None
    control_asr: float | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    dataset: str = ""
    fingerprint: str = ""
    images: int = 0
    seconds: float = 0.0
    budget: float | None = None
    seed: int = 0
    version: str = ""
    reason: str | None = None

    @property
    def cell(self) -> tuple[Any, ...]:
        """What rows that were measured together have in common."""
        return (
            self.task,
            self.method,
            self.detector,
            self.sha256,
            self.fingerprint,
            self.images,
            self.budget,
            self.seed,
            json.dumps(self.conditions, sort_keys=True),
        )

    @property
    def variant(self) -> str:
        """The method, with settings of its own if it was given any: a line of its own in tables."""
        opts = self.conditions.get("opts")
        return f"{self.method} {' '.join(opts)}" if opts else self.method

    @property
    def quantity(self) -> str:
        """The metric, of whichever part."""
        return self.metric.partition(":")[0]

    @property
    def part(self) -> str:
        """What part of the method the metric is of; "" for all of it."""
        return self.metric.partition(":")[2]

    @property
    def strength(self) -> str:
        """How well its attack works, in words, first digit first; "" for none, or if unknown.

        The ASR alone does not say: one that the same trigger reaches on clean detectors is none.
        """
        if self.truth != "backdoored" or self.asr is None:
            return ""
        if self.took:
            return "ASR 0.8 and more" if self.asr >= _STRONG_ASR else "ASR 0.5 to 0.8"
        if self.asr >= _WEAK_ASR and self.asr >= (self.control_asr or 0.0) + _WEAK_EXCESS:
            return "did not take: weak, ASR 0.2 and more"
        return "did not take: no effect"

    def as_dict(self) -> dict[str, Any]:
        """The row for a JSON file; what is not finite is no data."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ResultRow:
        """The row that :meth:`as_dict` made a dictionary of; keys of later versions are left out.

        Raises:
            TypeError: something is missing.
        """
        known = {each.name for each in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})

    def labelled(self, labels: Mapping[str, Mapping[str, Any]]) -> ResultRow:
        """The row with the facts of a sequestered detector, if they are among the labels."""
        facts = labels.get(self.detector)
        return self if facts is None else self.with_facts(facts)

    def with_facts(self, facts: Mapping[str, Any]) -> ResultRow:
        """The row with what a zoo says of its detector."""
        return replace(self, kind=facts["detector"], **{key: facts[key] for key in _FACTS})


class ResultStore:
    """A folder of results: ``TASK/METHOD.jsonl``, each file written as a whole.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def read(self) -> list[ResultRow]:
        """All rows, by task and method, in the order in which they were measured.

        Raises:
            ResultsError: a file cannot be read.
        """
        return [row for path in sorted(self.folder.glob(f"*/*{_SUFFIX}")) for row in _read(path)]

    def put(self, rows: Iterable[ResultRow]) -> None:
        """Keep the rows of one or more cells, in the place of earlier ones of the same cells.

        Raises:
            ResultsError: the file to add to cannot be read.
        """
        of_file: dict[Path, list[ResultRow]] = {}
        for row in rows:
            path = self.folder / row.task / f"{row.method}{_SUFFIX}"
            of_file.setdefault(path, []).append(row)
        for path, added in of_file.items():
            cells = {row.cell for row in added}
            kept = [row for row in _read(path) if row.cell not in cells] if path.exists() else []
            lines = [json.dumps(_told(row), allow_nan=False) for row in (*kept, *added)]
            write_text(path, "\n".join(lines) + "\n")

    def cells(self) -> set[tuple[Any, ...]]:
        """The cells that have a measurement; a failure is none."""
        return {row.cell for row in self.read() if row.metric != FAILED}


def _read(path: Path) -> list[ResultRow]:
    rows = []
    try:
        with open_readable(path) as stream:
            lines = stream.read(_LARGEST_FILE).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            rows.append(ResultRow.from_dict(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path}, line {number}: {error}") from None
    return rows


def _told(row: ResultRow) -> dict[str, Any]:
    """The row without what it leaves at its default."""
    given = {each.name: each.default for each in fields(ResultRow)}
    return {
        key: value for key, value in row.as_dict().items() if value != given[key] and value != {}
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
