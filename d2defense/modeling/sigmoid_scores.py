# SPDX-License-Identifier: Apache-2.0
"""Scores of classes that do not exclude each other, in the form that statistics take."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest log probability, so that that of the rest is a number: float32 ends near here.
_CERTAIN = -1e-6


def softmax_logits(log_scores: Tensor) -> Tensor:
    """Logits whose softmax says "something is here" as loudly as the likeliest class does.

    With scores s_1 .. s_K, which a sigmoid gives, the softmax of the result is
    ``max s`` for all classes together, shared out in proportion to the scores, and ``1 - max s``
    for background: so ``q = 1 - softmax(z)[background]`` is the largest class score.

    Args:
        log_scores: float32 Tensor of shape (..., K), log of the scores, at most 0.

    Returns:
        Tensor of shape (..., K + 1), background last, with gradient.
    """
    largest = log_scores.amax(dim=-1, keepdim=True).clamp(max=_CERTAIN)
    shares = log_scores - log_scores.logsumexp(dim=-1, keepdim=True)
    return torch.cat([largest + shares, _log1mexp(largest)], dim=-1)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x below 0, exact near both ends (Mächler 2012, R package Rmpfr)."""
    near = x > -0.6931
    # Each branch gets arguments that it can take, since gradients flow through both.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )
