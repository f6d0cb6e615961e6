# SPDX-License-Identifier: Apache-2.0
"""The statistics of proposals and objects, each defined here and nowhere else.

Every statistic is a ratio of two sums, kept as the terms of each image or of each target, so that
the same definition gives the number over all images and that over any resample of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from d2defense.ops.result import InconsistencyResult


class Terms(NamedTuple):
    """What each image (or each target) adds to the two sums of a statistic."""

    numerator: torch.Tensor
    """(G,) or (M,) float64."""
    denominator: torch.Tensor
    """(G,) or (M,) float64."""

    def ratio(self) -> float:
        """The statistic over everything; NaN where nothing counts."""
        count = float(self.denominator.sum())
        return float(self.numerator.sum()) / count if count else math.nan

    def per_image(self, target_offsets: torch.Tensor) -> Terms:
        """Terms of images from terms of targets.

        Args:
            target_offsets: (G + 1,) int64; image g owns targets offsets[g] .. offsets[g + 1].
        """
        image = torch.repeat_interleave(target_offsets.diff())
        zeros = torch.zeros(len(target_offsets) - 1, dtype=torch.float64)
        return Terms(*(zeros.index_add(0, image, part.cpu()) for part in self))


def tau_terms(result: InconsistencyResult) -> Terms:
    """Sum and number of the significant s of each image; see :func:`tau`."""
    return Terms(result.tau_sum, result.tau_count.double())


def confident_d_terms(result: InconsistencyResult) -> Terms:
    """Sum and number of the confident d of each image; see :func:`confident_d`."""
    return Terms(result.confident_sum, result.confident_count.double())


def gap_terms(result: InconsistencyResult) -> Terms:
    """max p - max q of each matched target; see :func:`gap`."""
    matched = result.target_matches > 0
    difference = result.target_objectness.double() - result.target_foreground.double()
    return Terms(torch.where(matched, difference, 0.0), matched.double())


def target_mean_terms(values: torch.Tensor) -> Terms:
    """Terms of the plain mean over all targets.

    Args:
        values: (M,) Tensor of any type, one number a target.
    """
    values = values.double()
    return Terms(values, torch.ones_like(values))


def true_class_terms(result: InconsistencyResult) -> Terms:
    """Largest probability of each target's own class; targets of unknown class do not count."""
    known = ~result.target_true_class.isnan()
    values = result.target_true_class.double()
    return Terms(torch.where(known, values, 0.0), known.double())


def unmatched_foreground_terms(result: InconsistencyResult) -> Terms:
    """Number of proposals that the box head takes for objects where none is, of each image."""
    counts = result.unmatched_foreground.double()
    return Terms(counts, torch.ones_like(counts))


def tau(result: InconsistencyResult) -> float:
    """Mean inconsistency of the significant proposals of all images.

    ``sum of s / number of s`` over the ``s = |p - q|`` above ``epsilon``, equation of the
    backdoor score in section 3 of arXiv 2409.16057.

    Returns:
        A number in (epsilon, 1]; NaN when no proposal is significant.
    """
    return tau_terms(result).ratio()


def confident_d(result: InconsistencyResult) -> float:
    """Mean signed inconsistency ``d = p - q`` of the proposals that the RPN is sure of.

    Returns:
        A number in [-1, 1]; NaN when the RPN is sure of none.
    """
    return confident_d_terms(result).ratio()


def gap(result: InconsistencyResult) -> float:
    """Mean over the matched targets of the largest p minus the largest q.

    "Correctly identified by the RPN but misclassified by R-CNN" (section 3 of arXiv 2409.16057)
    as a number.

    Returns:
        A number in [-1, 1]; NaN when no target is matched.
    """
    return gap_terms(result).ratio()


def mean_objectness(result: InconsistencyResult) -> float:
    """Mean over all targets of the largest p of a matched proposal, 0 where none matched.

    Returns:
        A number in [0, 1]; NaN when there are no targets.
    """
    return target_mean_terms(result.target_objectness).ratio()


def mean_foreground(result: InconsistencyResult) -> float:
    """Mean over all targets of the largest q of a matched proposal, 0 where none matched.

    Returns:
        A number in [0, 1]; NaN when there are no targets.
    """
    return target_mean_terms(result.target_foreground).ratio()
