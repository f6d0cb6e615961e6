# SPDX-License-Identifier: Apache-2.0
"""The one number that a checkpoint is judged by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from d2defense.ops import Terms

from .bootstrap import Bootstrap, percentile_interval

SCORE_STATISTIC = "largest fall of max_foreground over the triggers"


def trigger_fall(clean: Mapping[str, Terms], triggered: Mapping[str, Terms]) -> float:
    """How far a trigger pushes objects below the box head's attention: the fall of max q.

    The mean over objects of max q, clean minus triggered, 0..1. It is the sum of what gap (the
    box head no longer agrees with the RPN) and the fall of max p (the RPN itself is silenced)
    see one by one, so it rises whichever module carries the backdoor.
    """
    return clean["max_foreground"].ratio() - triggered["max_foreground"].ratio()


def checkpoint_score(
    clean: Mapping[str, Terms],
    triggered: Mapping[str, Mapping[str, Terms]],
    bootstrap: Bootstrap,
    confidence: float,
) -> tuple[float, tuple[float, float], str]:
    """The largest :func:`trigger_fall` over the bank.

    Calibration scores clean detectors by the same maximum over the same bank, which accounts for
    the number of triggers.

    Args:
        clean: statistics without a trigger, as terms of shape (G,).
        triggered: the same by name of the trigger.
        bootstrap: resamples of the G images.
        confidence: level of the interval.

    Returns:
        score, its interval over resamples (the maximum is taken anew on each), the worst trigger.
    """
    falls = {name: trigger_fall(clean, terms) for name, terms in triggered.items()}
    worst = max(falls, key=falls.__getitem__)
    before = bootstrap(clean["max_foreground"])
    samples: Tensor = torch.stack(
        [before - bootstrap(terms["max_foreground"]) for terms in triggered.values()]
    ).amax(dim=0)
    interval = percentile_interval(samples, confidence) or (falls[worst], falls[worst])
    return falls[worst], interval, worst
