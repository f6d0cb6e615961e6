# SPDX-License-Identifier: Apache-2.0
"""A large bank, raced: every trigger on a few images, the strongest on more, the last on all.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943). A trigger that shows nothing on the
first images is dropped, so that thousands cost little more than the few that are looked at closely.
The clean detectors of a calibration race in the same way, each against the others: the score of the
last triggers of a race is compared with nothing but such scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from d2defense.modeling import BatchSize
from d2defense.registry import DECISION_REGISTRY
from d2defense.statistics import Observation
from d2defense.triggers import Trigger

from .by_class import CLASS_FALLS, largest_class_fall
from .decisions.base import Decision, largest
from .images import CleanImage, object_classes
from .observing import observe_together
from .scale import DeployedScale
from .score import statistic
from .settings import ScanSettings
from .survey import KEPT, Dropped, Progress, Survey, survey_detector

#: Fewer triggers all go over all images.
LEAST_RACED = 64
#: Triggers of the last round.
FINALISTS = 12

# Of the images, what the first round sees: 1 in so many, of a bank, and of one of thousands.
_ONE_IN, _ONE_IN_OF_MANY, _MANY = 16, 25, 1024
# No round sees fewer, and each sees so many times as many as the one before.
_LEAST_IMAGES, _GROWTH = 4, 4
# Objects of a class that say something of it in a round.
_LEAST_OF_CLASS = 2
# Probability at which a trigger counts as seen, that it shows on no object of the first round.
_MISSED = 0.05
# Triggers whose sums are kept at a time.
_CHUNK = 64


class Round(NamedTuple):
    """One round of a race."""

    images: int
    """On which its triggers are stamped."""
    triggers: int
    """That are still in it, at most."""


def race_rounds(num_triggers: int, num_images: int) -> tuple[Round, ...]:
    """The rounds of a race of so many triggers; none where one would not pay."""
    if num_triggers < LEAST_RACED:
        return ()
    one_in = _ONE_IN if num_triggers < _MANY else _ONE_IN_OF_MANY
    first = max(_LEAST_IMAGES, num_images // one_in)
    if 2 * _GROWTH * first > num_images:
        return ()
    return (
        Round(first, num_triggers),
        Round(_GROWTH * first, round(1.5 * math.sqrt(num_triggers))),
        Round(num_images, FINALISTS),
    )


@dataclass(frozen=True)
class Heat:
    """What some images say of a detector under each of T triggers.

    Attributes:
        num_images: G.
        suspicion: (T, S), of each of the decision's statistics; NaN for no data.
        change: (T, K), of each of :data:`KEPT`, from the images as they are; NaN for no data.
    """

    num_images: int
    suspicion: np.ndarray
    change: np.ndarray


class BankRace:
    """The race of a bank over one detector.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images.
        settings: of the scan; its bank is large enough (:func:`race_rounds`).
        image_format: channel order of the images, "BGR" or "RGB".
        progress: told how much is done, 0..1.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[CleanImage],
        settings: ScanSettings,
        image_format: str,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._images, self._settings = model, images, settings
        self._image_format = image_format
        self._decision: Decision = DECISION_REGISTRY.get(settings.decision)()
        self._rounds = race_rounds(len(settings.triggers), len(images))
        self._order = race_order(images, self._rounds[-2].images, settings.seed)
        self._progress = progress or (lambda share: None)
        self._total = sum(each.images * each.triggers for each in self._rounds)
        self._done = 0

    def first_round(self) -> Heat:
        """Every trigger on the first images."""
        return self._heat(self._rounds[0], self._settings.triggers)

    def finish(self, first: Heat, baseline: np.ndarray) -> Survey:
        """The further rounds.

        Args:
            first: what :meth:`first_round` said.
            baseline: (T, S): mean suspicion of clean detectors in their first rounds.

        Returns:
            The triggers of the last round, on all images, in the bank's order; the others as they
            were when they were dropped.
        """
        alive = np.arange(len(self._settings.triggers))
        heat, dropped = first, {}
        for number, each in enumerate(self._rounds[1:], 1):
            scores = largest((heat.suspicion - baseline[alive])[:, None])
            keep = np.sort(np.argsort(-scores, kind="stable")[: each.triggers])
            for index in sorted(set(range(len(alive))) - set(keep.tolist())):
                name = self._settings.triggers[alive[index]].name
                dropped[name] = Dropped(heat.num_images, float(scores[index]), heat.change[index])
            alive = alive[keep]
            if number + 1 < len(self._rounds):
                heat = self._heat(each, [self._settings.triggers[index] for index in alive])
        finalists = tuple(self._settings.triggers[index] for index in alive)
        before, share = self._done, self._rounds[-1].images * len(finalists) / self._total
        seen = survey_detector(
            self._model,
            self._images,
            replace(self._settings, triggers=finalists),
            self._image_format,
            lambda done: self._progress(min(1.0, before / self._total + share * done)),
        )
        self._progress(1.0)
        return seen._replace(dropped=dropped)

    def _heat(self, each: Round, triggers: Sequence[Trigger]) -> Heat:
        images = [self._images[index] for index in self._order[: each.images]]
        settings = self._settings.observation
        batch_size = BatchSize(self._model, settings.batch_size)

        def observed(of: Sequence[Trigger | None]) -> list[Observation]:
            return observe_together(
                self._model, images, of, settings, self._image_format, self._scale, batch_size
            )

        (clean,) = observed([None])
        rows = []
        for start in range(0, len(triggers), _CHUNK):
            chunk = triggers[start : start + _CHUNK]
            rows += [on_few(clean, seen, self._decision) for seen in observed(chunk)]
            self._done += len(images) * len(chunk)
            self._progress(self._done / self._total)
        suspicion, change = map(np.stack, zip(*rows, strict=True))
        return Heat(len(images), suspicion, change)

    @cached_property
    def _scale(self) -> DeployedScale:
        try:
            return DeployedScale.of(self._model, self._images)
        except ValueError:
            return DeployedScale.unknown()


def race_order(images: Sequence[CleanImage], count: int, seed: int) -> list[int]:
    """Indices of ``count`` images of which already the first few show many objects of each class.

    Greedy: each image adds most to the sum over classes of the root of their objects so far. What a
    backdoor does to one class alone shows on objects of it alone.

    Args:
        images: clean images.
        count: how many are wanted.
        seed: decides among equals.
    """
    classes = object_classes(images)
    number = {name: index for index, name in enumerate(sorted({c for one in classes for c in one}))}
    counts = np.zeros((len(classes), len(number)))
    for row, own in enumerate(classes):
        for name in own:
            counts[row, number[name]] += 1
    left = np.random.default_rng(seed).permutation(len(classes)).tolist()
    total, order = np.zeros(len(number)), []
    while len(order) < count:
        gains = np.sqrt(total + counts[left]).sum(axis=1)
        order.append(left.pop(int(gains.argmax())))
        total += counts[order[-1]]
    return order


def on_few(
    clean: Observation, seen: Observation, decision: Decision
) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion (S,) and change (K,) as a :class:`Heat` has them, of one trigger.

    What a class loses counts from two objects on, since few images show more.

    Args:
        clean: the images as they are.
        seen: the same under the trigger.
        decision: how suspicion is defined.
    """

    def number(of: Observation, name: str) -> float:
        if name in CLASS_FALLS:
            return -largest_class_fall(clean, of, CLASS_FALLS[name], _LEAST_OF_CLASS).fall
        return float(statistic(clean, of, name))

    before, after = ({name: number(of, name) for name in KEPT} for of in (clean, seen))
    columns = (np.array([each[name] for name in decision.statistics]) for each in (before, after))
    suspicion = decision.suspicion(next(columns), next(columns)[None])
    return suspicion[0], np.array([after[name] - before[name] for name in KEPT])


def race_obstacle(seen: Survey, threshold: float) -> str | None:
    """Why a race leaves it open whether a detector is clean, in one sentence; None if not."""
    strong = [name for name, each in seen.dropped.items() if each.score > threshold]
    if not strong:
        return None
    return (
        f"{len(strong)} triggers, {strong[0]} among them, were dropped from the race though they "
        "did more to it on a few images than clean detectors show: scan with a smaller bank"
    )


def race_fields(seen: Survey, images: Sequence[CleanImage], seed: int) -> dict[str, Any]:
    """The race as it stands in ``result.json``."""
    rounds = race_rounds(len(seen.dropped) + len(seen.triggered), len(images))
    order = race_order(images, rounds[-2].images, seed)
    counts = [len(own) for own in object_classes(images)]
    objects = [sum(counts[index] for index in order[: each.images]) for each in rounds[:-1]]
    return {
        "rounds": [
            {"images": each.images, "objects": number, "triggers": each.triggers}
            for each, number in zip(rounds, [*objects, sum(counts)], strict=True)
        ],
        "dropped": [
            {"name": name, "images": each.num_images, "score": each.score}
            for name, each in seen.dropped.items()
        ],
    }


def proviso(fields: dict[str, Any]) -> str:
    """What "clean" cannot mean after a race, in words."""
    first = fields["rounds"][0]
    # A trigger that takes a share s of the objects leaves all n with probability (1 - s)^n.
    share = 1 - _MISSED ** (1 / max(1, first["objects"]))
    return (
        f"{len(fields['dropped'])} triggers were dropped after as few as {first['images']} images, "
        f"where one that takes less than {share:.0%} of the objects may not have shown"
    )
