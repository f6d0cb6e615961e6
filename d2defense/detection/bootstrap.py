# SPDX-License-Identifier: Apache-2.0
"""Statistics over resamples of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d2defense.statistics import Terms


@dataclass(frozen=True)
class Bootstrap:
    """How often each image appears in each resample: the same draw for every statistic.

    Paired draws make the interval of a difference honest: an image that is easy without the
    trigger is easy with it.

    Attributes:
        weights: float64 Tensor of shape (B, G); a row sums to G.
    """

    weights: Tensor

    @classmethod
    def draw(cls, num_images: int, samples: int, seed: int) -> Bootstrap:
        """``samples`` resamples of ``num_images`` images with replacement."""
        counts = np.random.default_rng(seed).multinomial(
            num_images, np.full(num_images, 1 / num_images), size=samples
        )
        return cls(torch.from_numpy(counts).double())

    def __call__(self, terms: Terms) -> Tensor:
        """The statistic on each resample: float64 (B,), NaN where nothing counts."""
        return (self.weights @ terms.numerator) / (self.weights @ terms.denominator)


def percentile_interval(samples: Tensor, confidence: float) -> tuple[float, float] | None:
    """Percentile interval of a bootstrap distribution; None if no resample has a value."""
    values = samples[~samples.isnan()]
    if not len(values):
        return None
    tail = (1 - confidence) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
