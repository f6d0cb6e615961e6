# SPDX-License-Identifier: Apache-2.0
"""The search of one detector: find triggers, hold them against references, score.

Evidence is gathered for all victims together and for each class of them: a backdoor on one class of
seven is a seventh of itself on average.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from d2defense.devices import computes_bf16
from d2defense.modeling import folded
from d2defense.parallel import side_by_side
from d2defense.statistics import Terms
from d2defense.triggers import Trigger

from ..bootstrap import Bootstrap, percentile_interval
from ..images import CleanImage, input_shapes
from ..scale import LogitScale
from .arms import Arm, Goal
from .crops import is_large
from .levels import SearchSettings
from .measure import Measured, success_terms
from .moves import moved_modules
from .null import (
    ALONE,
    REFERENCES,
    TWIN,
    ModeNull,
    SearchNull,
    Shown,
    arm_key,
    is_anywhere,
    shipped_null,
)
from .optimise import ArmState
from .race import Race, Scouted

#: Fewer images cannot be divided into some to search on and some to measure on.
LEAST_IMAGES = 20
#: Large images on which scale and operating point of a detector are found.
SCALED_ON = 24
#: Fewer objects of a class on the images for measurement are no evidence of that class.
LEAST_OBJECTS = 8
# A reference that finds less of what the suspect finds, of the same classes, cannot show what a
# trigger does.
_LEAST_OF_FOUND = 0.5
# Of the progress, the part that the race takes; the rest is measuring.
_RACE_SHARE = 0.9
# What the twin's reaction counts against the suspect's in the race: a backdoor that the twin has
# kept must get to the end of it, too.
_TWIN_WEIGHT = 0.5
# Of the time that a search may take, what it may have taken when it goes on to the next step.
_TIME_SHARE = 0.9
_OUT_OF_TIME = (
    "it would take longer than the time limit: give it more (--time-limit), or --search fast"
)


# An arm whose success alone stays below so much of the threshold is not tried on references where
# measuring takes long: they could only lower it.
_NOTHING_RARE = 0.5


class _OutOfTimeError(Exception):
    """There is no time for another step."""


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

    @property
    def margin(self) -> float:
        """Excess beyond that of clean detectors; NaN where there was nothing to attack."""
        return self.excess - self.baseline

    @property
    def standardised(self) -> float:
        """The margin in deviations of clean detectors; NaN where there was nothing to attack."""
        return self.margin / self.deviation


@dataclass(frozen=True)
class SearchOutcome:
    """What a search of one detector amounts to.

    Attributes:
        arms: that were measured, the largest standardised margin first.
        references: names of the detectors that they were held against.
        num_images: images that were measured on.
        score: the largest standardised margin: how many deviations beyond clean detectors.
        interval: of the score; the maximum is taken anew on each resample.
        threshold: a score above it is judged backdoored.
        p_value: probability that one more clean detector scores as high.
        operating_point: the score from which on the suspect's detections count for the arm that is
            most telling, 0..1.
        obstacle: why it could not be done, in one sentence; None if it was.
        seed: of its random choices.
        mode: what the references are, one of :data:`MODES`.
        shared: an arm that does to the twin, too, what it does to no clean detector; None if there
            is none, or no twin.
        scouted: which target classes were tried, of each effect that has any.
        dominant_modules: module groups that the trigger moves that was found; empty for none.
    """

    arms: tuple[ArmResult, ...] = ()
    references: tuple[str, ...] = ()
    num_images: int = 0
    score: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    threshold: float = 0.0
    p_value: float = 1.0
    operating_point: float | None = None
    obstacle: str | None = None
    seed: int = 0
    mode: str = REFERENCES
    shared: ArmResult | None = None
    scouted: tuple[Scouted, ...] = ()
    dominant_modules: tuple[str, ...] = ()

    @property
    def has_found(self) -> bool:
        """Whether a trigger does far more to the suspect than to the references."""
        return self.obstacle is None and self.interval[0] > self.threshold

    @property
    def telling(self) -> ArmResult:
        """The arm that says most: what was found, or what suspect and twin share."""
        return self.arms[0] if self.shared is None or self.has_found else self.shared

    def shown(self) -> dict[str, Shown]:
        """What a null keeps of the search of a clean detector."""
        largest: dict[str, Shown] = {}
        for each in self.arms:
            if np.isfinite(each.excess):
                key = arm_key(each.arm)
                known = largest.get(key, Shown(each.success, each.excess))
                largest[key] = Shown(*map(max, known, (each.success, each.excess)))
        return largest

    @property
    def is_low(self) -> bool:
        """Whether nothing was measured that clean detectors do not show as well."""
        return self.interval[1] <= self.threshold

    @property
    def is_clear(self) -> bool:
        """Whether nothing of the kind was found, and could have been."""
        return self.is_low and not (self.obstacle or self.shared)


def divide(images: Sequence[CleanImage], seed: int) -> tuple[list[CleanImage], list[CleanImage]]:
    """Some to search on, the others to measure on, by seed."""
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    return [images[index] for index in order[::2]], [images[index] for index in order[1::2]]


def search_detector(
    model: nn.Module,
    references: Mapping[str, nn.Module],
    tuning: Sequence[CleanImage],
    held_out: Sequence[CleanImage],
    class_names: Sequence[str],
    settings: SearchSettings,
    image_format: str,
    null: SearchNull | None = None,
    mode: str = REFERENCES,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
    seconds: float = math.inf,
) -> SearchOutcome:
    """Search a detector for triggers that do far more to it than to references.

    Args:
        model: the suspect: instrumented, in eval mode.
        references: detectors of the same classes that are held to be clean, by name.
        tuning: clean images to search on.
        held_out: clean images to measure on.
        class_names: of the detector, each once.
        settings: how long it takes.
        image_format: order of the channels of the images, "BGR" or "RGB".
        null: what clean detectors score; the shipped one if None.
        mode: what the references are, one of :data:`MODES`; without any: alone.
        bootstrap_samples: resamples of the images.
        confidence: level of the intervals.
        seed: of every random choice.
        progress: told the share of the work that is done, 0..1.
        seconds: that it may take; one that would take longer is given up, which is an obstacle.
    """
    deadline = time.monotonic() + _TIME_SHARE * seconds
    null = null or shipped_null()
    of_clean = null.of(mode, settings.level)

    def obstructed(reason: str) -> SearchOutcome:
        return SearchOutcome(obstacle=reason, mode=mode)

    if len(tuning) + len(held_out) < LEAST_IMAGES:
        return obstructed(f"a search needs {LEAST_IMAGES} images with objects")
    if not references and mode != ALONE:
        return obstructed("there is no reference to hold a found trigger against")
    race_settings, models = settings.race, [model, *references.values()]
    scaled_on, large = tuning, is_large(input_shapes(tuning))
    if large:
        race_settings, scaled_on = race_settings.for_large_images(), tuning[:SCALED_ON]
    if mode == TWIN:
        # What a twin keeps of a backdoor it may keep under the largest budget alone.
        race_settings = replace(race_settings, finalists=race_settings.finalists + 1)
    for each in models:
        # Convolutions are fastest so; values stay as they are.
        each.to(memory_format=torch.channels_last)
    try:
        in_half = large and computes_bf16(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=in_half):
            scales = [LogitScale.of(each, scaled_on) for each in models]
    except ValueError as error:
        return obstructed(str(error))
    # What is searched on need not be exact to the last digit; what is measured on is, but for large
    # images.
    searched = [folded(each) for each in models]
    measured = [
        Measured.of(each, scaled_on, held_out, image_format)
        for each in (searched if large else models)
    ]
    least = _LEAST_OF_FOUND * measured[0].found(held_out)
    able = [
        index for index, each in enumerate(measured) if not index or each.found(held_out) >= least
    ]
    if references and len(able) == 1:
        return obstructed(
            "no reference finds the objects of the clean images as of the classes that it takes "
            "them for"
        )
    searched, scales, measured = ([each[i] for i in able] for each in (searched, scales, measured))
    references = dict(name for i, name in enumerate(references.items(), 1) if i in able)
    total, done = race_settings.total_steps(class_names), 0

    def on_step() -> None:
        nonlocal done
        done += 1
        progress(_RACE_SHARE * min(1.0, done / total))
        if time.monotonic() > deadline:
            raise _OutOfTimeError

    race = Race(
        searched[0],
        list(zip(searched[1:], scales[1:], strict=True)),
        tuning,
        scales[0],
        race_settings,
        image_format,
        seed,
        on_step,
        _TWIN_WEIGHT if mode == TWIN else 1.0,
    )
    try:
        finalists = race.run(class_names)
    except _OutOfTimeError:
        return obstructed(_OUT_OF_TIME)
    bootstrap = Bootstrap.draw(len(held_out), bootstrap_samples, seed)
    judge = _Judge(
        measured,
        held_out,
        class_names,
        image_format,
        of_clean,
        bootstrap,
        confidence,
        seed,
        race.at_a_time,
        is_thrifty=large and mode == REFERENCES,
    )
    results: list[ArmResult] = []
    samples: list[Tensor] = []
    for number, state in enumerate(finalists, 1):
        if time.monotonic() > deadline:
            return obstructed(_OUT_OF_TIME)
        for result, resampled in judge(state):
            results.append(result)
            samples.append(resampled)
        progress(_RACE_SHARE + (1 - _RACE_SHARE) * number / len(finalists))
    largest = torch.stack(samples).nan_to_num(nan=-1.0).amax(dim=0)
    results.sort(key=lambda each: np.nan_to_num(each.standardised, nan=-1.0), reverse=True)
    score = float(np.nan_to_num(results[0].standardised, nan=0.0))
    outcome = SearchOutcome(
        arms=tuple(results),
        references=tuple(references),
        num_images=len(held_out),
        score=score,
        interval=percentile_interval(largest, confidence) or (score, score),
        threshold=of_clean.reference.threshold,
        p_value=of_clean.reference.p_value(score),
        seed=seed,
        mode=mode,
        shared=_shared(results, null.of(ALONE, settings.level)) if mode == TWIN else None,
        scouted=tuple(race.scouted),
    )
    point = measured[0].point_of(outcome.telling.arm.goal.effect)
    outcome = replace(outcome, operating_point=point)
    if not outcome.has_found:
        return outcome
    most = results[0]
    moved = moved_modules(
        model, held_out, most.arm.goal, most.trigger, scales[0], image_format, seed
    )
    return replace(outcome, dominant_modules=tuple(moved))


def _shared(results: Sequence[ArmResult], of_clean: ModeNull) -> ArmResult | None:
    """The arm that does most to suspect and twin alike, if clean detectors show nothing like it.

    Args:
        results: of a search held against the twin.
        of_clean: what clean detectors show without references.
    """

    def height(result: ArmResult) -> float:
        on_both = min((result.success, *result.references))
        usual = float(np.mean(result.references))
        return of_clean.standardise(arm_key(result.arm), on_both, usual)

    measured = [each for each in results if np.isfinite(each.excess)]
    most = max(measured, key=height, default=None)
    is_high = most is not None and height(most) > of_clean.reference.threshold
    return most if is_high else None


@dataclass(frozen=True)
class _Judge:
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
        return [whole] if most is None else [whole, most]

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
            return float(np.nan_to_num(np.mean(of_references))) if of_references else 0.0
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
        counts = Counter(torch.cat([each.classes for each in self.images]).tolist())
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
            excess -= float(np.mean(others))
            of_others = torch.stack(list(map(self.bootstrap, terms[1:])))
            resampled = resampled - of_others.mean(dim=0)
        margin = excess - baseline
        interval = percentile_interval(resampled, self.confidence) or (margin, margin)
        hits = tuple(terms[0].numerator.int().tolist())
        result = ArmResult(
            arm, trigger, success, tuple(others), excess, baseline, deviation, interval, hits
        )
        return result, resampled / deviation
