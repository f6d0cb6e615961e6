# SPDX-License-Identifier: Apache-2.0
"""Whether what a search has found is a backdoor, on images that its null does not know.

How far an optimised patch drives clean detectors depends on what the images show and how well a
detector has learned it: of two that were trained alike on photos, the same patch may turn most
objects of one into another class, and none of the other. Neither a null of other images nor a few
references tell that from a backdoor. The suspect's twin does, as the paper's verification (arXiv
2409.16057, section 3.3): fine-tuning leaves a weakness of the training, and takes away what was
taught beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .judge import ArmResult, Judge

# What has no excess over the twin in the first of them has none in the next; measuring takes time.
_MOST_TRIED = 5


def tried_on_twin(
    results: Sequence[ArmResult],
    judge: Judge,
    threshold: float,
    is_late: Callable[[], bool] = lambda: False,
) -> tuple[list[ArmResult], bool]:
    """What stands out tried on the twin, until a trigger does far more to the suspect.

    Args:
        results: of the search, the largest first, which is tried in any case: of several arms, the
            largest may stand out where none does by itself.
        judge: of the suspect and its twin.
        threshold: of the results' scores.
        is_late: whether there is no time to try another one.

    Returns:
        The results, those that were tried with what they do to the twin; and whether one is proven,
        which is the first then.
    """
    tried, left = [], list(results)
    while left and len(tried) < _MOST_TRIED:
        if tried and (is_late() or not left[0].standardised > threshold):
            break
        result = left.pop(0)
        held = judge.again(result)
        (on_twin,) = held.references
        result = replace(result, on_twin=on_twin)
        if held.interval[0] > held.deviation * judge.null.reference.threshold:
            return [result, *tried, *left], True
        tried.append(result)
    return tried + left, False
