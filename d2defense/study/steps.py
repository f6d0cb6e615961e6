# SPDX-License-Identifier: Apache-2.0
"""A study as steps: each done once, its result kept in a file of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2defense.files import write_json

STEPS_FOLDER = "steps"


@dataclass(frozen=True)
class Step:
    """One piece of work of a study.

    Attributes:
        name: unique in the study, parts divided by "/"; of its result's file.
        action: name of the function in :mod:`d2defense.study.actions` that does it, or
            "module:function" of another one.
        arguments: of the action, as JSON has them. Paths are relative to the study's folder.
        needs: steps whose results the action is given, by the name of its parameter.
        unkeyed: further arguments, which may change without making the result stale.
        facts: what the rows of its result repeat, by fields of
            :class:`~d2defense.study.results.ResultRow`.
    """

    name: str
    action: str
    arguments: dict[str, Any]
    needs: Mapping[str, Step] = field(default_factory=dict)
    unkeyed: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Changes with everything that the result depends on: a result under another is stale."""
        content = [self.action, self.arguments, {n: s.key for n, s in self.needs.items()}]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


class StepResults:
    """The results in a study's folder.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, step: Step) -> dict[str, Any] | None:
        """The result of a step, or None if it is not done, not readable or stale."""
        content = self.record(step)
        return content["result"] if content else None

    def record(self, step: Step) -> dict[str, Any] | None:
        """The whole file of a step that is done: its key, seconds and result."""
        try:
            content = json.loads(self._path(step).read_text(encoding="utf-8"))
            return content if content["key"] == step.key and "result" in content else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_stale(self, step: Step) -> bool:
        """Whether there is a file of the step which is not its result, or no longer."""
        return self.record(step) is None and self._path(step).exists()

    def has_files(self, step: Step) -> bool:
        """Whether the files that a step which is done left are still there."""
        result = self.get(step) or {}
        return all((self.folder / name).exists() for name in result.get("files", ()))

    def put(self, step: Step, result: Mapping[str, Any], seconds: float) -> None:
        """Keep the result of a step."""
        content = {
            "name": step.name,
            "key": step.key,
            "seconds": round(seconds, 1),
            "action": step.action,
            "arguments": step.arguments,
            "result": dict(result),
        }
        write_json(self._path(step), content)

    def _path(self, step: Step) -> Path:
        return self.folder / STEPS_FOLDER / f"{step.name}.json"


def in_order(steps: Iterable[Step]) -> list[Step]:
    """The steps and all that they need, each once, those needed first.

    Raises:
        ValueError: two different steps of one name.
    """
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        known = ordered.get(step.name)
        if known is not None:
            if known.key != step.key:
                raise ValueError(f"two different steps are called {step.name}")
            return
        for needed in step.needs.values():
            visit(needed)
        ordered[step.name] = step

    for step in steps:
        visit(step)
    return list(ordered.values())


def open_steps(wanted: Iterable[Step], results: StepResults) -> list[Step]:
    """The steps that must be done to have the results of those wanted, in order.

    What is only needed by steps that are done is not asked for: their files may be deleted.
    """
    steps = in_order(wanted)
    asked = {step.name for step in wanted if results.get(step) is None}
    for step in reversed(steps):
        if step.name in asked:
            asked |= {
                needed.name
                for needed in step.needs.values()
                if results.get(needed) is None or not results.has_files(needed)
            }
    return [step for step in steps if step.name in asked]


def dependents(step: Step, steps: Iterable[Step]) -> Iterator[Step]:
    """Those of ``steps``, in order, that need ``step``, directly or not."""
    lost = {step.name}
    for other in steps:
        if any(needed.name in lost for needed in other.needs.values()):
            lost.add(other.name)
            yield other
