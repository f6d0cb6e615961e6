# SPDX-License-Identifier: Apache-2.0
"""The statistics that detection decides on, each defined here and nowhere else.

All of them take an :class:`InconsistencyResult` and give one number for all of its images.
"""

from __future__ import annotations

import math

import torch

from d2defense.ops.result import InconsistencyResult


def tau(result: InconsistencyResult) -> float:
    """Mean inconsistency of the significant proposals of all images.

    ``sum of s / number of s`` over the ``s = |p - q|`` above ``epsilon``, equation of the
    backdoor score in section 3 of arXiv 2409.16057.

    Returns:
        A number in (epsilon, 1]; NaN when no proposal is significant.
    """
    return _ratio(result.tau_sum.sum(), result.tau_count.sum())


def confident_d(result: InconsistencyResult) -> float:
    """Mean signed inconsistency ``d = p - q`` of the proposals that the RPN is sure of.

    Returns:
        A number in [-1, 1]; NaN when the RPN is sure of none.
    """
    return _ratio(result.confident_sum.sum(), result.confident_count.sum())


def gap(result: InconsistencyResult) -> float:
    """Mean over the matched targets of the largest p minus the largest q.

    "Correctly identified by the RPN but misclassified by R-CNN" (section 3 of arXiv 2409.16057)
    as a number.

    Returns:
        A number in [-1, 1]; NaN when no target is matched.
    """
    matched = result.target_matches > 0
    difference = result.target_objectness.double() - result.target_foreground.double()
    return _ratio(difference[matched].sum(), matched.sum())


def mean_objectness(result: InconsistencyResult) -> float:
    """Mean over all targets of the largest p of a matched proposal, 0 where none matched.

    Returns:
        A number in [0, 1]; NaN when there are no targets.
    """
    return _mean(result.target_objectness)


def mean_foreground(result: InconsistencyResult) -> float:
    """Mean over all targets of the largest q of a matched proposal, 0 where none matched.

    Returns:
        A number in [0, 1]; NaN when there are no targets.
    """
    return _mean(result.target_foreground)


def _mean(values: torch.Tensor) -> float:
    return _ratio(values.double().sum(), torch.tensor(values.numel()))


def _ratio(total: torch.Tensor, count: torch.Tensor) -> float:
    number = int(count)
    return float(total) / number if number else math.nan
