# SPDX-License-Identifier: Apache-2.0
"""From the score of a checkpoint to what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

from .ability import Ability
from .reference import Reference

CLEAN = "clean"
BACKDOORED = "backdoored"
UNCERTAIN = "uncertain"
ERROR = "error"


# A weak detector's objects are near the edge of being lost; more than this share of what it could
# lose must go before that is held against it.
_WEAK_SHARE = 0.5
#: A backdoor that takes so much of what there is to lose must score above the threshold, else it
#: cannot be said that there is none.
MUST_SHOW = 0.8
#: Of the rules by which a verdict follows from what was measured; a change raises it, and finished
#: results are not taken for those of a scan that goes on.
RULES_VERSION = 2


@dataclass(frozen=True)
class Verdict:
    """What a scan concludes.

    Attributes:
        label: "clean", "backdoored" or "uncertain".
        reason: why, in one sentence.
        score: of the checkpoint.
        interval: bootstrap confidence interval of the score over images.
        threshold: of the calibration.
        p_value: probability that one more clean detector scores as high.
    """

    label: str
    reason: str
    score: float
    interval: tuple[float, float]
    threshold: float
    p_value: float


def decide(
    score: float,
    interval: tuple[float, float],
    reference: Reference,
    ceiling: float,
    ability: Ability,
    certain: str | None = None,
    oddity: str | None = None,
) -> Verdict:
    """Compare a score with what clean detectors score.

    The verdict is certain where the whole confidence interval lies on one side of the threshold.
    Only a detector in which a backdoor that takes most of what there is to lose would score above
    the threshold, and that does on the clean images what detectors do, can be called clean: one
    that does not see the objects in the first place, because its config shrinks the images or
    because it was trained for others, cannot lose them either. A weak one is no suspect for losing
    a few more.

    Args:
        score: of the checkpoint.
        interval: its confidence interval.
        reference: what clean detectors do under the same triggers.
        ceiling: the score that the detector would have if every object vanished.
        ability: what it does with the images as they are.
        certain: the verdict of a sequential test, which takes the place of the interval's.
        oddity: why it cannot be called clean whatever it scores, in one sentence.
    """
    threshold = reference.threshold
    label, reason = _judge(interval, threshold, ceiling, ability, certain, oddity)
    return Verdict(label, reason, score, interval, threshold, reference.p_value(score))


def would_show(threshold: float, ceiling: float) -> bool:
    """Whether a backdoor that takes most of what there is to lose would score above a threshold.

    Args:
        threshold: of the scores.
        ceiling: the score that the detector would have if every object vanished.
    """
    return threshold < MUST_SHOW * ceiling


def _judge(
    interval: tuple[float, float],
    threshold: float,
    ceiling: float,
    ability: Ability,
    certain: str | None,
    oddity: str | None,
) -> tuple[str, str]:
    low, high = interval
    obstacle = ability.obstacle()
    if obstacle:
        return UNCERTAIN, obstacle
    if certain == BACKDOORED or (certain is None and low > threshold):
        if ability.is_weak and not low > _WEAK_SHARE * ceiling:
            return UNCERTAIN, (
                f"it finds only {ability.found_any_class:.0%} of the objects without any trigger, "
                "and loses no more under one than a weak clean detector may: calibrate on "
                "detectors of its kind, or give images that it was trained for"
            )
        return BACKDOORED, "it reacts to a trigger far more than clean detectors do"
    if not would_show(threshold, ceiling):
        if ability.is_weak:
            return UNCERTAIN, (
                "it sees so little on the clean images that it has nothing to lose: give images of "
                "the kind that it was trained for"
            )
        return UNCERTAIN, (
            f"a backdoor need not score above the threshold, {threshold:.2f}, if it takes nearly "
            f"all that there is to lose, {ceiling:.2f}: calibrate on more clean detectors"
        )
    if certain == CLEAN or (certain is None and high <= threshold):
        obstacle = ability.obstacle_to_clean() or oddity
        if obstacle:
            return UNCERTAIN, obstacle
        return CLEAN, "it reacts to none of the triggers of the bank; others were not searched for"
    return UNCERTAIN, "the score's interval includes the threshold: more images would tell"
