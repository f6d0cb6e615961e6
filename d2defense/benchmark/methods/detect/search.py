# SPDX-License-Identifier: Apache-2.0
"""The search of this project."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from d2defense.detection import CleanImage
from d2defense.detection.search import (
    REFERENCES,
    TWIN,
    SearchOutcome,
    SearchSettings,
    divide,
    search_detector,
)
from d2defense.detection.twin import TwinError, TwinSettings, fine_tuned_twin
from d2defense.detection.verdict import BACKDOORED, CLEAN, UNCERTAIN
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("search")
class Search(DetectionMethod):
    """d2defense's search: a trigger by gradient, beyond what it does to references.

    ``d2defense scan --search standard`` (docs/method.md), whether or not the bank finds anything.
    A search that would take longer than the budget is cut short: what it has come to is scored.
    """

    needs = "detectors held to be clean"
    level: ClassVar[str] = "standard"

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the largest margin over arms; the worst arm says effect and target class.

        Raises:
            RuntimeError: nothing could be measured; the message says why.
        """
        outcome = self.searched(subject)
        if not outcome.arms:
            raise RuntimeError(outcome.obstacle)
        effect, target = found_by(outcome, subject.class_names)
        parts: dict[str, float] = {}
        for each in outcome.arms:
            if math.isfinite(each.standardised):
                for name in (each.arm.goal.effect.name, each.arm.start.family):
                    parts[name] = max(parts.get(name, -math.inf), each.standardised)
        return Judgement(
            outcome.score,
            outcome.interval,
            outcome.has_found,
            effect,
            target,
            BACKDOORED if outcome.has_found else CLEAN if outcome.is_clear else UNCERTAIN,
            parts,
            {
                "worst_arm": outcome.arms[0].arm.name,
                "references": list(outcome.references),
                # Scores of one null are not those of another.
                "threshold": outcome.threshold,
            },
        )

    def searched(self, subject: DetectionSubject) -> SearchOutcome:
        """What the search finds, or why it could not be done."""
        return subject.once((type(self).references, self.level), lambda: self._search(subject))

    def _search(self, subject: DetectionSubject) -> SearchOutcome:
        images = [subject.images[index] for index in range(len(subject.images))]
        tuning, held_out = divide(images, subject.seed)
        mode, references = self.references(subject, tuning)
        settings = SearchSettings(self.level)
        return search_detector(
            subject.model,
            references,
            tuning,
            held_out,
            subject.class_names,
            settings,
            subject.image_format,
            seed=subject.seed,
            mode=mode,
            seconds=subject.seconds_left,
            is_known=settings.null.knows(subject.dataset, subject.fingerprint),
            make_twin=lambda: self._twin(subject, tuning),
        )

    def _twin(self, subject: DetectionSubject, tuning: Sequence[CleanImage]) -> nn.Module:
        """The suspect's twin, unless the budget is spent on it."""

        def on_step() -> None:
            if subject.is_late:
                raise TwinError("it would take more time than there is")

        return fine_tuned_twin(subject.model, tuning, TwinSettings(), on_step)

    def references(
        self, subject: DetectionSubject, tuning: Sequence[CleanImage]
    ) -> tuple[str, Mapping[str, nn.Module]]:
        """What the suspect is held against, and the name of the mode: other detectors here."""
        return REFERENCES, subject.references


def found_by(outcome: SearchOutcome, class_names: Sequence[str]) -> tuple[str, str]:
    """Effect and target class of the arm of the largest margin; "" for no class."""
    goal = outcome.arms[0].arm.goal
    return goal.effect.name, "" if goal.target_class is None else class_names[goal.target_class]


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
        return TWIN, {TWIN: self._twin(subject, tuning)}
