# SPDX-License-Identifier: Apache-2.0
"""Which detectors are backdoored?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from d2defense.checkpoint import CheckpointSource
from d2defense.config import get_d2defense_cfg
from d2defense.detection import (
    ScanSettings,
    Subject,
    load_calibration,
    open_references,
    open_subject,
)
from d2defense.detection.search import names_of_classes
from d2defense.detection.verdict import CLEAN, UNCERTAIN
from d2defense.modeling import number_of_classes
from d2defense.registry import DETECTION_REGISTRY, EFFECT_REGISTRY, TASK_REGISTRY

from ..methods.detect.base import DetectionSubject, Judgement
from ..zoo.index import ZooDetector
from .base import Measurement, Task, TaskOptions, TaskResult

SCORE, ALARM, EFFECT, TARGET = "score", "alarm", "effect_named", "target_named"
# Where a method may say neither.
CALLED = {CLEAN: "called_clean", UNCERTAIN: "called_uncertain"}


@TASK_REGISTRY.register("detect")
class Detecting(Task):
    """Which detectors are backdoored? A score each, and what the backdoor does.

    ``score`` ranks detectors, ``score:NAME`` is that of a part of the method. ``alarm`` is the
    method's own verdict (1 or 0), by its published or shipped threshold; a method that may be
    uncertain has ``called_clean`` and ``called_uncertain`` beside it. Of backdoored detectors whose
    attack is known, ``effect_named`` and ``target_named`` say whether the method names effect and
    target class rightly, where it names any.
    """

    methods = DETECTION_REGISTRY
    ranked_by = (SCORE,)

    def begin(
        self, detector: ZooDetector, source: CheckpointSource, options: TaskOptions
    ) -> DetectionSubject:
        """The model with the images, shared by all methods."""
        settings = ScanSettings.from_config(get_d2defense_cfg())
        subject = open_subject(source, options.images, settings, options.device)
        model, images, cfg = subject
        model.requires_grad_(False)
        return DetectionSubject(
            model=model,
            images=images,
            class_names=names_of_classes(number_of_classes(cfg), options.images.class_names),
            image_format=cfg.INPUT.FORMAT,
            open_references=partial(_references, subject, settings, options),
            settings=settings,
            calibration=load_calibration(decision=settings.decision),
            dataset=options.images.name,
            fingerprint=options.images.fingerprint,
            seed=options.seed,
        )

    def measure(
        self,
        method: str,
        detector: ZooDetector,
        source: CheckpointSource,
        options: TaskOptions,
        shared: DetectionSubject,
    ) -> TaskResult:
        """Let a method judge the detector."""
        judge = self.methods.get(method)()
        start = time.perf_counter()
        shared.charged = 0.0
        shared.deadline = None if options.budget is None else start + options.budget
        said = judge.judge(shared)
        seconds = time.perf_counter() - start + shared.charged
        return TaskResult(
            _measurements(said, detector.facts),
            judge.settings | dict(said.details),
            judge.needs,
            seconds,
        )


def _references(
    subject: Subject, settings: ScanSettings, options: TaskOptions
) -> Mapping[str, nn.Module]:
    """Those of the run's references that the suspect can be held against."""
    usable, _ = open_references(
        options.references, subject, options.images, settings, options.device
    )
    return usable


def _measurements(said: Judgement, facts: Mapping[str, Any]) -> list[Measurement]:
    low, high = said.interval or (None, None)
    found = [Measurement(SCORE, said.score, low, high)]
    if said.is_alarm is not None:
        found.append(Measurement(ALARM, float(said.is_alarm)))
    if said.verdict is not None:
        found += [Measurement(name, float(said.verdict == v)) for v, name in CALLED.items()]
    found += [Measurement(f"{SCORE}:{name}", value) for name, value in said.parts.items()]
    if facts["truth"] != "backdoored":
        return found
    if said.effect is not None and facts["effect"]:
        found.append(Measurement(EFFECT, float(_is_named(facts["effect"], said.effect))))
    if said.target_class is not None and facts["target_class"] is not None:
        found.append(Measurement(TARGET, float(said.target_class == facts["target_class"])))
    return found


def _is_named(effect: str, said: str) -> bool:
    """Whether a detector with an effect does what a method says, however it was trained."""
    if effect == said:
        return True
    known = {name: each for name, each in EFFECT_REGISTRY}
    if effect not in known or said not in known:
        return False
    # What is not searched for itself is what it refines, by another training.
    return not known[effect].searched_at and issubclass(known[effect], known[said])
