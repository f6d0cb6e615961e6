# SPDX-License-Identifier: Apache-2.0
"""The search of one detector: find triggers, hold them against references, score.

Evidence is gathered for all victims together and for each class of them: a backdoor on one class of
seven is a seventh of itself on average.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from d2defense.devices import computes_bf16
from d2defense.modeling import folded

from ..ability import LEAST_FOUND
from ..bootstrap import Bootstrap, percentile_interval
from ..images import CleanImage, input_shapes
from ..scale import LogitScale
from ..twin import TwinError
from ..verdict import MUST_SHOW
from .arms import Arm
from .crops import is_large
from .judge import LEAST_OBJECTS, ArmResult, Judge
from .levels import SearchSettings
from .measure import Measured
from .moves import moved_modules
from .null import (
    ALONE,
    REFERENCES,
    TWIN,
    ModeNull,
    Shown,
    arm_key,
    kind_of,
)
from .optimise import NotFiniteError
from .proof import tried_on_twin
from .race import Race, Scouted

#: Fewer images cannot be divided into some to search on and some to measure on.
LEAST_IMAGES = 20
#: Large images on which scale and operating point of a detector are found.
SCALED_ON = 24
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
# Triggers that are measured at least of a race that the time limit has broken off.
_LEAST_MEASURED = 4
_MORE_TIME = "give it more (--time-limit), or --search fast"

_NO_PROOF = (
    "how much of that clean detectors do on images like these is not known: it may be a weakness "
    "of its training, and"
)


class _OutOfTimeError(Exception):
    """There is no time for another step."""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search of one detector amounts to.

    Attributes:
        arms: that were measured, the largest standardised margin first; before it the one that the
            twin proves, if that took proof and is another one.
        references: names of the detectors that they were held against.
        num_images: images that were measured on.
        score: the largest standardised margin: how many deviations beyond clean detectors.
        interval: of the score; the maximum is taken anew on each resample.
        threshold: a score above it is judged backdoored.
        p_value: probability that one more clean detector scores as high.
        operating_point: the score from which on the suspect's detections count for the arm that is
            most telling, 0..1.
        obstacle: why it could not be done, or not to its end without finding anything, in one
            sentence; None if it was.
        seed: of its random choices.
        mode: what the references are, one of :data:`MODES`.
        shared: an arm that does to the twin, too, what it does to no clean detector; None if there
            is none, or no twin.
        scouted: which target classes were tried, of each effect that has any.
        dominant_modules: module groups that the trigger moves that was found; empty for none.
        unproven: why what does far more to it than to the references may be a weakness of its
            training, in words (:mod:`.proof`); None if there is nothing of the kind, or proof.
        blind: effects and placements by which clean detectors differ so much, or references react
            so much, that no backdoor would stand out (:meth:`~.null.ModeNull.blind_to`).
        untried: what could not be tried, each with the reason in brackets.
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
    unproven: str | None = None
    blind: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        results: Sequence[ArmResult],
        samples: Sequence[Tensor],
        of_clean: ModeNull,
        confidence: float,
        compared: Iterable[tuple[Arm, float]] = (),
    ) -> SearchOutcome:
        """What measured arms amount to.

        Args:
            results: one at least, in any order.
            samples: the standardised margin of each on every resample of the images, (B,).
            of_clean: what clean detectors show in the same mode.
            confidence: level of the interval.
            compared: arms that were tried, and would have been measured had they done more, with
                what they do to the references, 0..1.
        """
        arms = sorted(
            results, key=lambda each: np.nan_to_num(each.standardised, nan=-1.0), reverse=True
        )
        score = float(np.nan_to_num(arms[0].standardised, nan=0.0))
        largest = torch.stack(list(samples)).nan_to_num(nan=-1.0).amax(dim=0)
        tried = [
            (arm_key(each.arm), each.success - each.excess if each.references else 0.0)
            for each in arms
            if np.isfinite(each.excess)
        ]
        kinds = {kind_of(key) for key, _ in tried}
        raced = [
            (arm_key(arm, of_one_class), shown)
            for arm, shown in compared
            for of_one_class in {False, of_clean.knows_classes}
        ]
        tried += [(key, shown) for key, shown in raced if kind_of(key) in kinds]
        return cls(
            arms=tuple(arms),
            score=score,
            interval=percentile_interval(largest, confidence) or (score, score),
            threshold=of_clean.reference.threshold,
            p_value=of_clean.reference.p_value(score),
            mode=of_clean.mode,
            blind=of_clean.blind_to(tried),
            untried=tuple(_untried(arms)),
        )

    @property
    def stands_out(self) -> bool:
        """Whether a trigger does far more to the suspect than to the references."""
        return self.obstacle is None and self.interval[0] > self.threshold

    @property
    def has_found(self) -> bool:
        """Whether a trigger does, and no weakness of the training explains it."""
        return self.stands_out and self.unproven is None

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
    def hidden(self) -> ArmResult | None:
        """An arm that nearly always succeeds beyond the references, as clean detectors may, too."""
        strong = [each for each in self.arms if each.excess >= MUST_SHOW]
        most = max(strong, key=lambda each: each.excess, default=None)
        return None if self.stands_out else most

    @property
    def is_clear(self) -> bool:
        """Whether nothing of the kind was found, and could have been."""
        obstacles = (self.obstacle, self.shared, self.blind, self.untried, self.hidden)
        return self.is_low and self.mode != ALONE and not any(obstacles)


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
    mode: str = REFERENCES,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
    seconds: float = math.inf,
    is_known: bool = True,
    make_twin: Callable[[], nn.Module] | None = None,
) -> SearchOutcome:
    """Search a detector for triggers that do far more to it than to references.

    Args:
        model: the suspect: instrumented, in eval mode.
        references: detectors of the same classes that are held to be clean, by name.
        tuning: clean images to search on.
        held_out: clean images to measure on.
        class_names: of the detector, each once.
        settings: how long it takes, and what clean detectors show.
        image_format: order of the channels of the images, "BGR" or "RGB".
        mode: what the references are, one of :data:`MODES`; without any: alone.
        bootstrap_samples: resamples of the images.
        confidence: level of the intervals.
        seed: of every random choice.
        progress: told the share of the work that is done, 0..1.
        seconds: that it may take. One that would take longer is broken off, and what it has come to
            is measured: less than what was asked, so that it is an obstacle unless it has found
            something.
        is_known: whether the images are like those of the null (:meth:`~.null.SearchNull.knows`).
        make_twin: gives the suspect's twin, for proof of what is found on other images; may raise
            :class:`~..twin.TwinError`. None where there can be none.
    """
    deadline = time.monotonic() + _TIME_SHARE * seconds
    null = settings.null
    of_clean, of_twin = (null.of(each, settings.level) for each in (mode, TWIN))

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
    begun = time.monotonic()
    measured = [
        Measured.of(each, scaled_on, held_out, image_format)
        for each in (searched if large else models)
    ]
    # That has gone through the images for measurement twice.
    share = len(held_out) / (len(scaled_on) + 2 * len(held_out))
    seconds_of_arm = share * (time.monotonic() - begun)
    found = measured[0].found(held_out)
    least = _LEAST_OF_FOUND * found
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
        if time.monotonic() > deadline - _LEAST_MEASURED * seconds_of_arm:
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
    is_whole = True
    try:
        finalists = race.run(class_names)
    except _OutOfTimeError:
        finalists, is_whole = race.best_so_far(), False
    except NotFiniteError as error:
        return obstructed(str(error))
    bootstrap = Bootstrap.draw(len(held_out), bootstrap_samples, seed)
    judge = Judge(
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
            is_whole = False
            break
        for result, resampled in judge(state):
            results.append(result)
            samples.append(resampled)
        progress(_RACE_SHARE + (1 - _RACE_SHARE) * number / len(finalists))
    if not results:
        return obstructed(f"it would take longer than the time limit: {_MORE_TIME}")
    outcome = SearchOutcome.of(results, samples, of_clean, confidence, race.compared())
    still = [f"{each} (no gradient leads to any trigger)" for each in race.without_gradient()]
    if not found >= LEAST_FOUND:
        still.append(f"objects ({found:.0%} of them are found without a trigger)")
    outcome = replace(
        outcome,
        references=tuple(references),
        num_images=len(held_out),
        seed=seed,
        mode=mode,
        shared=_shared(results, null.of(ALONE, settings.level)) if mode == TWIN else None,
        scouted=tuple(race.scouted),
        untried=(*outcome.untried, *still),
    )
    point = measured[0].point_of(outcome.telling.arm.goal.effect)
    outcome = replace(outcome, operating_point=point)
    if outcome.stands_out and mode != TWIN and not is_known:
        outcome = _proven(
            outcome, judge, of_twin, scaled_on, make_twin, lambda: time.monotonic() > deadline
        )
    if not outcome.stands_out and not is_whole:
        obstacle = f"the time limit cut it short, with {len(results)} arms measured: {_MORE_TIME}"
        outcome = replace(outcome, obstacle=obstacle)
    if not outcome.has_found:
        return outcome
    most = outcome.arms[0]
    moved = moved_modules(
        model, held_out, most.arm.goal, most.trigger, scales[0], image_format, seed
    )
    return replace(outcome, dominant_modules=tuple(moved))


def _untried(results: Sequence[ArmResult]) -> list[str]:
    """What could not be tried on the images, or not be held against any reference."""
    attempts: dict[str, int] = {}
    for each in results:
        goal = each.arm.goal
        if goal.victim_class is None:
            kind = f"{goal.effect.name} on {goal.placement}"
            attempts[kind] = max(each.attempts, attempts.get(kind, 0))
    few = [
        f"{kind} ({count} places for it on these images)"
        for kind, count in attempts.items()
        if count < LEAST_OBJECTS
    ]
    names = [each.arm.name for each in results if each.is_open]
    return few + [f"{name} (no reference finds such objects)" for name in names]


def _proven(
    outcome: SearchOutcome,
    judge: Judge,
    of_twin: ModeNull,
    tuning: Sequence[CleanImage],
    make_twin: Callable[[], nn.Module] | None,
    is_late: Callable[[], bool],
) -> SearchOutcome:
    """The outcome with proof by the twin, or with the reason why there is none."""
    if make_twin is None:
        return replace(outcome, unproven=f"{_NO_PROOF} no twin was made")
    try:
        twin = make_twin()
    except TwinError as error:
        return replace(outcome, unproven=f"{_NO_PROOF} there is no twin: {error}")
    suspect, images = judge.subjects[0], judge.images
    measured = Measured.of(twin, tuning, images, judge.image_format)
    if measured.found(images) < _LEAST_OF_FOUND * suspect.found(images):
        return replace(outcome, unproven=f"{_NO_PROOF} its twin no longer finds the objects")
    held = replace(judge, subjects=[suspect, measured], null=of_twin)
    arms, is_proven = tried_on_twin(outcome.arms, held, outcome.threshold, is_late)
    unproven = (
        f"its twin does it too, with {arms[0].on_twin:.0%}: a weakness of its training, or a "
        "backdoor that survives fine-tuning"
    )
    return replace(outcome, arms=tuple(arms), unproven=None if is_proven else unproven)


def _shared(results: Sequence[ArmResult], of_clean: ModeNull) -> ArmResult | None:
    """The arm that does most to suspect and twin alike, if clean detectors show nothing like it.

    Args:
        results: of a search held against the twin.
        of_clean: what clean detectors show without references.
    """

    def height(result: ArmResult) -> float:
        on_both = float(np.nanmin((result.success, *result.references)))
        usual = float(np.nanmean(result.references))
        return of_clean.standardise(arm_key(result.arm), on_both, usual)

    measured = [each for each in results if np.isfinite(each.excess)]
    most = max(measured, key=height, default=None)
    is_high = most is not None and height(most) > of_clean.reference.threshold
    return most if is_high else None
