# SPDX-License-Identifier: Apache-2.0
"""The search of this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from d2defense.detection import CleanImage
from d2defense.detection.search import (
    REFERENCES,
    TWIN,
    SearchSettings,
    divide,
    search_detector,
)
from d2defense.detection.twin import TwinSettings, fine_tuned_twin
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("search")
class Search(DetectionMethod):
    """d2defense's search: a trigger by gradient, beyond what it does to references.

    ``d2defense scan --search standard`` (docs/method.md), whether or not the bank finds anything.
    A search that would take longer than the budget is given up.
    """

    needs = "detectors held to be clean"
    level: ClassVar[str] = "standard"

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the largest margin over arms; the worst arm says effect and target class."""
        images = [subject.images[index] for index in range(len(subject.images))]
        tuning, held_out = divide(images, subject.seed)
        mode, references = self.references(subject, tuning)
        outcome = search_detector(
            subject.model,
            references,
            tuning,
            held_out,
            subject.class_names,
            SearchSettings(self.level),
            subject.image_format,
            seed=subject.seed,
            mode=mode,
            seconds=subject.seconds_left,
        )
        if outcome.obstacle is not None:
            raise RuntimeError(outcome.obstacle)
        goal = outcome.arms[0].arm.goal
        target = goal.target_class
        return Judgement(
            outcome.score,
            outcome.interval,
            outcome.has_found,
            goal.effect.name,
            "" if target is None else subject.class_names[target],
            {"worst_arm": outcome.arms[0].arm.name, "references": list(outcome.references)},
        )

    def references(
        self, subject: DetectionSubject, tuning: Sequence[CleanImage]
    ) -> tuple[str, Mapping[str, nn.Module]]:
        """What the suspect is held against, and the name of the mode: other detectors here."""
        return REFERENCES, subject.references


@DETECTION_REGISTRY.register("search_fast")
class FastSearch(Search):
    """d2defense's search at its quickest: two trigger families, forty steps.

    ``d2defense scan --search fast``.
    """

    level = "fast"


@DETECTION_REGISTRY.register("search_twin")
class TwinSearch(Search):
    """d2defense's search against the twin alone: the suspect itself after plain fine-tuning.

    ``d2defense scan --search standard`` where no references are given. The twin is fine-tuned on
    the half of the images that the search works on, and measured on the other.
    """

    needs = ""

    def references(
        self, subject: DetectionSubject, tuning: Sequence[CleanImage]
    ) -> tuple[str, Mapping[str, nn.Module]]:
        """The twin."""
        return TWIN, {TWIN: fine_tuned_twin(subject.model, tuning, TwinSettings())}
