# SPDX-License-Identifier: Apache-2.0
"""What is normal among clean images: spreads, and features of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the covariance of features, what is taken as the same in every direction: few are at hand.
_SHRINKAGE = 0.3
_UPPER = 0.95


@dataclass(frozen=True)
class Scale:
    """A unit for numbers of clean images: their median is 0, the largest 5 % lie above 1."""

    middle: float
    unit: float

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """From clean values, (N,); of none or of equal ones, what leaves others at 0 or below."""
        if not len(values):
            return cls(0.0, torch.inf)
        middle, upper = (float(values.double().quantile(share)) for share in (0.5, _UPPER))
        return cls(middle, upper - middle if upper > middle else torch.inf)

    def __call__(self, values: Tensor) -> Tensor:
        """In these units."""
        return (values - self.middle) / self.unit


@dataclass(frozen=True)
class Normality:
    """Features of classes: a mean for each, and one covariance (Lee et al., arXiv 1807.03888).

    Attributes:
        means: (K, C); of a class without features, that of all.
        precision: (C, C), inverse of the covariance, shrunk to a multiple of the identity.
    """

    means: Tensor
    precision: Tensor

    @classmethod
    def of(cls, features: Tensor, classes: Tensor) -> Normality:
        """From features (N, C) of detections and their classes, int64 (N,)."""
        width = features.shape[1]
        if not len(features):
            return cls(torch.zeros(1, width), torch.zeros(width, width))  # nothing is odd
        features = features.double()
        everything = features.mean(dim=0)
        means = everything.repeat(int(classes.max()) + 1, 1)
        for label in classes.unique().tolist():
            means[label] = features[classes == label].mean(dim=0)
        covariance = shrunk_covariance(features - means[classes], _SHRINKAGE)
        return cls(means, torch.linalg.inv(covariance))

    def __call__(self, features: Tensor, classes: Tensor) -> Tensor:
        """Logarithm of one plus the squared distance from the class's mean, float (N,)."""
        known = classes.clamp(max=len(self.means) - 1)
        rest = features.double() - self.means[known].double()
        squared = ((rest @ self.precision.double()) * rest).sum(dim=1)
        return squared.clamp(min=0).log1p().float()


def shrunk_covariance(rest: Tensor, shrinkage: float) -> Tensor:
    """Covariance (C, C) of deviations (N, C), part of it the same in every direction.

    Args:
        rest: float64, deviations from their mean, N at least 1.
        shrinkage: that part, 0..1: it becomes the multiple of the identity of the same trace.
    """
    covariance = rest.T @ rest / len(rest)
    even = covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(rest.shape[1]).double()
    return (1 - shrinkage) * covariance + shrinkage * even
