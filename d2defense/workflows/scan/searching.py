# SPDX-License-Identifier: Apache-2.0
"""The search of one checkpoint within its scan: references, outcome, what the result says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from d2defense.detection import CleanImage, Subject, open_references
from d2defense.detection.search import (
    ALONE,
    REFERENCES,
    TWIN,
    ArmResult,
    SearchOutcome,
    divide,
    names_of_classes,
    search_detector,
)
from d2defense.detection.search.levels import ALWAYS
from d2defense.detection.search.search import LEAST_IMAGES as LEAST_SEARCHED
from d2defense.detection.survey import Progress
from d2defense.detection.twin import TOO_FEW_IMAGES, TwinError
from d2defense.detection.twin_images import images_for_twin
from d2defense.files import json_number
from d2defense.modeling import number_of_classes
from d2defense.report.figures import draw_examples
from d2defense.report.results import SEARCH_FILE, TRIGGER_FILE

from ..examples import found_examples
from .task import ScanTask
from .twin import make_twin, twin_bytes

# Images that are drawn with the found trigger.
_EXAMPLES = 3
# Arms that the result lists.
_LISTED = 20
# Of the progress, the part that the twin takes.
_TWIN_SHARE = 0.4


class Searched(NamedTuple):
    """What a search of a checkpoint yields."""

    outcome: SearchOutcome
    """Arms and score."""
    fields: dict[str, Any]
    """``search`` of the result."""
    figures: dict[str, bytes]
    """PNG files by name."""
    twin: bytes
    """Safetensors file of the twin's weights; empty without one."""
    references: dict[str, nn.Module]
    """Detectors held to be clean that it was held against, by name; the twin is none of them."""


@dataclass
class _Twin:
    """The twin of a suspect, made when it is first asked for.

    Attributes:
        task: of the scan.
        subject: the suspect.
        tuning: the images to search on.
        num_held_out: images that the search is measured on.
        model: the twin, once it is made.
    """

    task: ScanTask
    subject: Subject
    tuning: Sequence[CleanImage]
    num_held_out: int
    model: nn.Module | None = None

    @cached_property
    def images(self) -> list[CleanImage]:
        """Those to fine-tune on; empty where there are too few."""
        task, cfg = self.task, self.subject.cfg
        return images_for_twin(task.images, task.settings, self.tuning, self.num_held_out, cfg)

    def make(self, progress: Progress, seconds: float) -> nn.Module:
        """The twin; arguments and errors as :func:`.twin.make_twin`."""
        if self.model is None:
            if not self.images:
                raise TwinError(TOO_FEW_IMAGES)
            self.model = make_twin(self.task, self.subject.model, self.images, progress, seconds)
        return self.model


def search_checkpoint(
    task: ScanTask, subject: Subject, progress: Progress, seconds: float = math.inf
) -> Searched:
    """Search the detector of a checkpoint for triggers, held against the task's references.

    Args:
        task: of the scan.
        subject: its detector, with the clean images.
        progress: told how much is done, 0..1.
        seconds: that it may take; a twin that would take more than half of what is left is not
            made, and a search that takes longer is cut short: what it has come to is measured.

    Raises:
        CheckpointError: a reference cannot be used.
    """
    start, settings = time.perf_counter(), task.settings
    model, images, cfg = subject
    names = names_of_classes(number_of_classes(cfg), task.images.class_names)
    tuning, held_out = divide([images[index] for index in range(len(images))], settings.seed)
    references, left_out = open_references(
        task.references, subject, task.images, settings, task.device
    )
    may_make_twin = settings.search.may_make_twin and len(images) >= LEAST_SEARCHED
    twin, no_twin, share = _Twin(task, subject, tuning, len(held_out)), None, 0.0
    if may_make_twin and (settings.search.twin == ALWAYS or not references):
        if not twin.images:
            left_out.append(f"twin: {TOO_FEW_IMAGES}")
        else:
            share = _TWIN_SHARE
            try:
                twin.make(lambda done: progress(share * done), seconds / 2)
            except TwinError as error:
                no_twin = f"twin: {error}"
                left_out.append(no_twin)
    mode = REFERENCES if references else ALONE if twin.model is None else TWIN
    is_known = settings.search.null.knows(task.images.name, task.images.fingerprint)
    # A twin that is made for proof comes after the search.
    comes_later = may_make_twin and mode == REFERENCES and twin.model is None and not is_known
    later = _TWIN_SHARE if comes_later else 0.0

    def seconds_left() -> float:
        return seconds - (time.perf_counter() - start)

    def twin_for_proof() -> nn.Module:
        return twin.make(lambda done: progress(1 - later + later * done), seconds_left() / 2)

    outcome = search_detector(
        model,
        # Never beside references: it may have kept a backdoor, of which their mean is to be free.
        {TWIN: twin.model} if mode == TWIN else references,
        tuning,
        held_out,
        names,
        settings.search,
        cfg.INPUT.FORMAT,
        bootstrap_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
        mode=mode,
        progress=lambda done: progress(share + (1 - share - later) * done),
        seconds=seconds_left(),
        is_known=is_known,
        make_twin=twin_for_proof if may_make_twin and no_twin is None else None,
    )
    if mode == ALONE and no_twin is not None and not outcome.has_found:
        outcome = replace(outcome, obstacle=no_twin)
    entry, content, figures = None, b"", {}
    if outcome.arms:
        entry, content = outcome.telling.trigger.to_entry(TRIGGER_FILE)
        figures[TRIGGER_FILE] = content
        if task.figures:
            pairs = found_examples(model, held_out, outcome, cfg.INPUT.FORMAT, names, _EXAMPLES)
            title = f"{task.name}: {outcome.telling.arm.name}"
            figures[SEARCH_FILE] = draw_examples(pairs, title)
    fields = {
        "level": settings.search.level,
        "mode": outcome.mode,
        "references": list(outcome.references),
        "null": settings.search.null.describe(task.images.fingerprint),
        "left_out": left_out,
        "num_images": outcome.num_images,
        "score": outcome.score,
        "score_interval": list(outcome.interval),
        "threshold": outcome.threshold,
        "p_value": outcome.p_value,
        "operating_point": outcome.operating_point,
        "obstacle": outcome.obstacle,
        "has_found": outcome.has_found,
        "unproven": outcome.unproven,
        "blind": list(outcome.blind),
        "untried": list(outcome.untried),
        "shared": None if outcome.shared is None else _arm(outcome.shared, names),
        "scouted": [
            {
                "effect": each.effect,
                "placement": each.placement,
                "classes": list(each.classes),
                "of": each.of,
            }
            for each in outcome.scouted
        ],
        "arms": [_arm(each, names) for each in outcome.arms[:_LISTED]],
        "trigger": entry,
        "seconds": time.perf_counter() - start,
    }
    saved = b"" if twin.model is None else twin_bytes(twin.model)
    held = {name: references[name] for name in outcome.references if name in references}
    return Searched(outcome, fields, figures, saved, held)


def _arm(result: ArmResult, class_names: Sequence[str]) -> dict[str, Any]:
    """An arm as it stands in ``result.json``."""
    goal, start = result.arm.goal, result.arm.start
    target, victim = goal.target_class, goal.victim_class
    return {
        "effect": goal.effect.name,
        "placement": goal.placement,
        "victim_class": None if victim is None else class_names[victim],
        "target_class": None if target is None else class_names[target],
        "family": start.family,
        "budget": start.name,
        "success": json_number(result.success),
        "references": [json_number(each) for each in result.references],
        "on_twin": None if result.on_twin is None else json_number(result.on_twin),
        "excess": json_number(result.excess),
        "baseline": result.baseline,
        "deviation": result.deviation,
        "interval": list(result.interval),
    }
