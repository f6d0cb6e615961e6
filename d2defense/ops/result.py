# SPDX-License-Identifier: Apache-2.0
"""What the inconsistency operator returns."""

from __future__ import annotations

from typing import NamedTuple

import torch


class InconsistencyResult(NamedTuple):
    """Statistics of G groups of proposals (triggered images) with M targets in all.

    p is the RPN's objectness of a proposal, q the box head's foreground probability,
    ``d = p - q`` and ``s = |d|``. A proposal with a NaN or infinite logit or box is counted in
    ``nonfinite`` and in nothing else.
    """

    tau_sum: torch.Tensor
    """(G,) float64: sum of the s above ``epsilon`` among a group's first ``topk`` proposals."""
    tau_count: torch.Tensor
    """(G,) int64: how many there are."""
    confident_sum: torch.Tensor
    """(G,) float64: sum of d over the proposals with p above ``objectness_floor``."""
    confident_count: torch.Tensor
    """(G,) int64: how many there are."""
    score_max: torch.Tensor
    """(G,) float32: the largest s of all proposals; 0 in an empty group."""
    nonfinite: torch.Tensor
    """(G,) int64: proposals with a NaN or infinite logit or box coordinate."""
    histogram: torch.Tensor
    """(G, num_bins) int64: s of a group's first ``topk`` proposals, equal bins over [0, 1]."""
    target_objectness: torch.Tensor
    """(M,) float32: the largest p of the proposals matched to the target; 0 without a match."""
    target_foreground: torch.Tensor
    """(M,) float32: likewise the largest q."""
    target_true_class: torch.Tensor
    """(M,) float32: likewise the largest softmax probability of the target's own class.

    NaN where that class is unknown.
    """
    target_matches: torch.Tensor
    """(M,) int32: proposals whose IoU with the target is at least ``iou_threshold``."""
    unmatched_foreground: torch.Tensor
    """(G,) int64: proposals with q > 0.5 whose IoU with every target is below 0.1."""

    def to_cpu(self) -> InconsistencyResult:
        """Copy everything to the CPU at once, without gradients: a GPU is waited for once."""
        # Larger elements first, so that each field starts where its type can be read.
        order = sorted(range(len(self)), key=lambda i: -self[i].element_size())
        fields = {i: self[i].detach().contiguous() for i in order}
        parts = [field.view(-1).view(torch.uint8) for field in fields.values()]
        joined = torch.cat(parts).cpu().split([len(part) for part in parts])
        for part, (i, field) in zip(joined, fields.items(), strict=True):
            fields[i] = part.view(field.dtype).view(field.shape)
        return InconsistencyResult(*(fields[i] for i in range(len(self))))
