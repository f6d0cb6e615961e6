# SPDX-License-Identifier: Apache-2.0
"""What a found trigger amounts to: measured on images that it was not found on, held against other
detectors and what clean ones show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from d2defense.parallel import side_by_side
from d2defense.statistics import Terms
from d2defense.triggers import Trigger

from ..bootstrap import Bootstrap, percentile_interval
from ..images import CleanImage, objects_of_classes
from .arms import Arm, Goal
from .measure import Measured, success_terms
from .null import ModeNull, arm_key, is_anywhere
from .optimise import ArmState

#: Fewer objects of a class on the images for measurement are no evidence of that class.
LEAST_OBJECTS = 8
# An arm whose success alone stays below so much of the threshold is not tried on references where
# measuring takes long: they could only lower it.
_NOTHING_RARE = 0.5


@dataclass(frozen=True)
class ArmResult:
    """What a found trigger does on images that it was not found on.

    Attributes:
        arm: effect, placement and budget; its goal has a victim class where the objects of one
            class were looked at alone.
        trigger: that was found.
        success: attack success rate on the suspect, 0..1; NaN where there was nothing to attack.
        references: the same on each reference; none where it was not tried on them, since the
            success alone is nothing rare.
        excess: success beyond the mean of the references; the success itself without any.
        baseline: mean excess of clean detectors by the same arm.
        deviation: standard deviation of the same.
        interval: of excess minus baseline, over resamples of the images.
        hits: successes on each image.
        attempts: places or objects that were attacked, on all images.
        on_twin: success on the suspect's twin, where that was asked for proof (:mod:`.proof`).
    """

    arm: Arm
    trigger: Trigger
    success: float
    references: tuple[float, ...]
    excess: float
    baseline: float
    deviation: float
    interval: tuple[float, float]
    hits: tuple[int, ...]
    attempts: int
    on_twin: float | None = None

    @property
    def margin(self) -> float:
        """Excess beyond that of clean detectors; NaN where there was nothing to attack."""
        return self.excess - self.baseline

    @property
    def is_open(self) -> bool:
        """Whether it does something to the suspect that no reference has any object for."""
        return self.success > 0 and not np.isfinite(self.excess)

    @property
    def standardised(self) -> float:
        """The margin in deviations of clean detectors; NaN where there was nothing to attack."""
        return self.margin / self.deviation


@dataclass(frozen=True)
class Judge:
    """Says what found triggers do, to all victims and to those of one class.

    Attributes:
        subjects: the suspect, and the references.
        images: to measure on.
        class_names: of the detector.
        image_format: order of the channels.
        null: what clean detectors show.
        bootstrap: resamples of the images.
        confidence: level of the intervals.
        seed: of the places.
        at_a_time: detectors that are measured at the same time, at most.
        is_thrifty: leave out the references where they cannot matter.
    """

    subjects: Sequence[Measured]
    images: Sequence[CleanImage]
    class_names: Sequence[str]
    image_format: str
    null: ModeNull
    bootstrap: Bootstrap
    confidence: float
    seed: int
    at_a_time: int = 1
    is_thrifty: bool = False

    def __call__(self, state: ArmState) -> list[tuple[ArmResult, Tensor]]:
        """The result of an arm, and of the class on which it does most beyond the others.

        Each with its standardised margin on each resample, (B,).
        """
        arm = state.arm
        trigger = arm.start.with_tensors(state.tensors, "found")
        goals = [arm.goal, *self._of_classes(arm.goal)]

        def measured(subjects: Sequence[Measured]) -> list[list[Terms]]:
            return side_by_side(
                lambda each: success_terms(
                    each, self.images, trigger, goals, self.image_format, self.seed
                ),
                subjects,
                state.device,
                self.at_a_time,
            )

        terms = measured(self.subjects[:1] if self.is_thrifty else self.subjects)
        if self.is_thrifty and self._may_be_rare(arm, goals, terms[0]):
            terms += measured(self.subjects[1:])
        usual = self._usual(arm, [of_goals[0].ratio() for of_goals in terms[1:]])
        whole, *parts = (
            self._result(replace(arm, goal=goal), trigger, of_goal, usual)
            for goal, of_goal in zip(goals, zip(*terms, strict=True), strict=True)
        )
        known = [each for each in parts if np.isfinite(each[0].standardised)]
        most = max(known, key=lambda each: each[0].standardised, default=None)
        # What no reference can be asked of is no evidence either way.
        open_ = [each for each in parts if each[0].is_open]
        return [whole, *([] if most is None else [most]), *open_]

    def again(self, result: ArmResult) -> ArmResult:
        """What the trigger of a result does to these subjects, by this null."""
        arm, trigger = result.arm, result.trigger
        terms = [
            success_terms(each, self.images, trigger, [arm.goal], self.image_format, self.seed)[0]
            for each in self.subjects
        ]
        usual = self._usual(arm, [each.ratio() for each in terms[1:]])
        return self._result(arm, trigger, terms, usual)[0]

    def _may_be_rare(self, arm: Arm, goals: Sequence[Goal], own: Sequence[Terms]) -> bool:
        """Whether what a trigger does to the suspect would be rare if references did not react."""
        results = [
            self._result(replace(arm, goal=goal), arm.start, [terms], 0.0)[0]
            for goal, terms in zip(goals, own, strict=True)
        ]
        limit = _NOTHING_RARE * self.null.reference.threshold
        return any(each.interval[1] > limit * each.deviation for each in results)

    def _usual(self, arm: Arm, of_references: Sequence[float]) -> float:
        """Success that is nothing unusual on these images.

        That of the references, 0 where it was not tried on them. Without any, ghosts of the suspect
        under what the search began with: where much is that nobody labelled, detections come and go
        by themselves.
        """
        if len(self.subjects) > 1:
            known = [rate for rate in of_references if np.isfinite(rate)]
            return float(np.mean(known)) if known else 0.0
        if not is_anywhere(arm_key(arm)):
            return 0.0
        start, image_format = arm.start, self.image_format
        (terms,) = success_terms(
            self.subjects[0], self.images, start, [arm.goal], image_format, self.seed
        )
        return float(np.nan_to_num(terms.ratio()))

    def _of_classes(self, goal: Goal) -> list[Goal]:
        """The goal on each class with enough objects, where it is known what is large for one."""
        if not self.null.knows_classes:
            return []
        counts = objects_of_classes(self.images)
        return [
            goal.of_class(category, self.class_names)
            for category in range(len(self.class_names))
            if goal.can_attack(category) and counts[category] >= LEAST_OBJECTS
        ]

    def _result(
        self, arm: Arm, trigger: Trigger, terms: Sequence[Terms], usual: float
    ) -> tuple[ArmResult, Tensor]:
        success, *others = (each.ratio() for each in terms)
        key = arm_key(arm)
        baseline, deviation = self.null.baseline(key, usual), self.null.deviation(key, usual)
        excess, resampled = success, self.bootstrap(terms[0]) - baseline
        if others:
            # A reference that finds none of the objects cannot lose them.
            comparable = [t for t, rate in zip(terms[1:], others, strict=True) if rate == rate]
            excess -= float(np.nanmean(others)) if comparable else math.nan
            of_others = torch.stack(list(map(self.bootstrap, comparable or terms[1:])))
            resampled = resampled - of_others.nanmean(dim=0)
        margin = excess - baseline
        interval = percentile_interval(resampled, self.confidence) or (margin, margin)
        hits = tuple(terms[0].numerator.int().tolist())
        attempts = int(terms[0].denominator.sum())
        result = ArmResult(
            arm,
            trigger,
            success,
            tuple(others),
            excess,
            baseline,
            deviation,
            interval,
            hits,
            attempts,
        )
        return result, resampled / deviation
