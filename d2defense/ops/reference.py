# SPDX-License-Identifier: Apache-2.0
"""The inconsistency operator in plain PyTorch: the definition that the kernels are tested with."""

from __future__ import annotations

import torch

from d2defense.ops.result import InconsistencyResult
from d2defense.ops.scores import (
    class_probability,
    foreground,
    intersection_over_union,
    objectness,
)
from d2defense.ops.validation import check_arguments

FOREGROUND_FLOOR = 0.5
"""q above which the box head says "object" (:attr:`InconsistencyResult.unmatched_foreground`)."""
UNMATCHED_IOU = 0.1
"""IoU below which a proposal has nothing to do with a target (likewise)."""


@torch.no_grad()
def inconsistency_reference(
    objectness_logits: torch.Tensor,
    class_logits: torch.Tensor,
    proposal_boxes: torch.Tensor,
    proposal_offsets: torch.Tensor,
    target_boxes: torch.Tensor,
    target_offsets: torch.Tensor,
    target_classes: torch.Tensor,
    *,
    epsilon: float = 0.1,
    topk: int = 0,
    objectness_floor: float = 0.8,
    iou_threshold: float = 0.5,
    num_bins: int = 0,
) -> InconsistencyResult:
    """Compute what :func:`d2defense.ops.inconsistency` computes, in float64, group by group.

    Arguments, result and errors are those of :func:`d2defense.ops.inconsistency`. Needs
    ``8 * (K + 1 + targets)`` bytes a proposal of the largest group.
    """
    check_arguments(
        objectness_logits,
        class_logits,
        proposal_boxes,
        proposal_offsets,
        target_boxes,
        target_offsets,
        target_classes,
        epsilon=epsilon,
        topk=topk,
        objectness_floor=objectness_floor,
        iou_threshold=iou_threshold,
        num_bins=num_bins,
    )
    result = _empty_result(
        groups=proposal_offsets.shape[0] - 1,
        target_classes=target_classes,
        num_bins=num_bins,
        device=objectness_logits.device,
    )
    proposal_edges, target_edges = proposal_offsets.tolist(), target_offsets.tolist()
    for group in range(len(proposal_edges) - 1):
        rows = slice(proposal_edges[group], proposal_edges[group + 1])
        z, boxes = class_logits[rows], proposal_boxes[rows]
        finite = objectness_logits[rows].isfinite() & z.isfinite().all(1) & boxes.isfinite().all(1)
        result.nonfinite[group] = (~finite).sum()
        p = objectness(objectness_logits[rows])
        q = foreground(z)
        d = p - q
        s = d.abs()

        leading = finite.clone()
        if topk > 0:
            leading[topk:] = False
        significant = leading & (s > epsilon)
        result.tau_sum[group] = s[significant].sum()
        result.tau_count[group] = significant.sum()
        if num_bins > 0:
            bins = (s[leading] * num_bins).long().clamp(max=num_bins - 1)
            result.histogram[group] = torch.bincount(bins, minlength=num_bins)

        confident = finite & (p > objectness_floor)
        result.confident_sum[group] = d[confident].sum()
        result.confident_count[group] = confident.sum()
        if bool(finite.any()):
            result.score_max[group] = s[finite].max()

        targets = range(target_edges[group], target_edges[group + 1])
        overlap = _overlap(boxes, finite, target_boxes[targets.start : targets.stop])
        for column, target in enumerate(targets):
            matched = finite & (overlap[:, column] >= iou_threshold)
            if not bool(matched.any()):
                continue
            result.target_matches[target] = matched.sum()
            result.target_objectness[target] = p[matched].max()
            result.target_foreground[target] = q[matched].max()
            true_class = int(target_classes[target])
            if true_class >= 0:
                probability = class_probability(z[matched], true_class)
                result.target_true_class[target] = probability.max()
        alone = finite & (overlap < UNMATCHED_IOU).all(1)
        result.unmatched_foreground[group] = (alone & (q > FOREGROUND_FLOOR)).sum()
    return result


def _empty_result(
    groups: int, target_classes: torch.Tensor, num_bins: int, device: torch.device
) -> InconsistencyResult:
    def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    targets = target_classes.shape[0]
    true_class = zeros(targets, dtype=torch.float32)
    true_class[(target_classes < 0).to(device)] = float("nan")
    return InconsistencyResult(
        tau_sum=zeros(groups, dtype=torch.float64),
        tau_count=zeros(groups, dtype=torch.int64),
        confident_sum=zeros(groups, dtype=torch.float64),
        confident_count=zeros(groups, dtype=torch.int64),
        score_max=zeros(groups, dtype=torch.float32),
        nonfinite=zeros(groups, dtype=torch.int64),
        histogram=zeros(groups, num_bins, dtype=torch.int64),
        target_objectness=zeros(targets, dtype=torch.float32),
        target_foreground=zeros(targets, dtype=torch.float32),
        target_true_class=true_class,
        target_matches=zeros(targets, dtype=torch.int32),
        unmatched_foreground=zeros(groups, dtype=torch.int64),
    )


def _overlap(boxes: torch.Tensor, finite: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of each proposal with each target; 0 where one of the two boxes is not finite."""
    boxes = torch.where(finite[:, None], boxes, 0.0)
    targets = torch.where(targets.isfinite().all(1, keepdim=True), targets, 0.0)
    return intersection_over_union(boxes, targets)
