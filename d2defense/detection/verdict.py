# SPDX-License-Identifier: Apache-2.0
"""From the score of a checkpoint to what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

from .reference import Reference

CLEAN = "clean"
BACKDOORED = "backdoored"
UNCERTAIN = "uncertain"
ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """What a scan concludes.

    Attributes:
        label: "clean", "backdoored" or "uncertain".
        score: of the checkpoint.
        interval: bootstrap confidence interval of the score over images.
        threshold: of the calibration.
        p_value: probability that one more clean detector scores as high.
    """

    label: str
    score: float
    interval: tuple[float, float]
    threshold: float
    p_value: float


def decide(
    score: float,
    interval: tuple[float, float],
    reference: Reference,
    ceiling: float,
    certain: str | None = None,
) -> Verdict:
    """Compare a score with what clean detectors score.

    The verdict is certain where the whole confidence interval lies on one side of the threshold.
    Only a detector that could have scored above the threshold can be called clean: one that does
    not see the objects in the first place, because its config shrinks the images or because it
    was trained for others, cannot lose them either.

    Args:
        score: of the checkpoint.
        interval: its confidence interval.
        reference: what clean detectors do under the same triggers.
        ceiling: the score that the detector would have if every object vanished.
        certain: the verdict of a sequential test, which takes the place of the interval's.
    """
    threshold = reference.threshold
    low, high = interval
    label = UNCERTAIN
    if certain == BACKDOORED or (certain is None and low > threshold):
        label = BACKDOORED
    elif threshold < ceiling and (certain == CLEAN or (certain is None and high <= threshold)):
        label = CLEAN
    return Verdict(label, score, interval, threshold, reference.p_value(score))
