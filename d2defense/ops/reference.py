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

    Arguments, result, gradients and errors are those of :func:`d2defense.ops.inconsistency`, but
    that logits may be float64 too; what is float32 in the result then is float64. Needs
    ``8 * (K + 1 + targets)`` bytes a proposal of the largest group, and for gradients several times
    as much of all groups.
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
    device = objectness_logits.device
    double = objectness_logits.dtype == torch.float64
    precision = torch.float64 if double else torch.float32

    def nothing(*shape: int, dtype: torch.dtype = precision) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    fields: dict[str, list[torch.Tensor]] = {name: [] for name in InconsistencyResult._fields}
    proposal_edges, target_edges = proposal_offsets.tolist(), target_offsets.tolist()
    for group in range(len(proposal_edges) - 1):
        rows = slice(proposal_edges[group], proposal_edges[group + 1])
        o, z, boxes = objectness_logits[rows], class_logits[rows], proposal_boxes[rows]
        finite = o.isfinite() & z.isfinite().all(1) & boxes.isfinite().all(1)
        # Nothing else of what is not finite is read: 0 times NaN would be NaN in a gradient.
        place = finite.nonzero().squeeze(1)
        o, z, boxes = o[place], z[place], boxes[place]
        p, q = objectness(o), foreground(z)
        d = p - q
        s = d.abs()
        fields["nonfinite"].append((~finite).sum())

        leading = place < topk if topk > 0 else torch.ones_like(place, dtype=torch.bool)
        significant = leading & (s > epsilon)
        fields["tau_sum"].append(s[significant].sum())
        fields["tau_count"].append(significant.sum())
        bins = (s[leading] * max(num_bins, 1)).long().clamp(max=num_bins - 1)
        counts = torch.bincount(bins, minlength=num_bins) if num_bins > 0 else bins[:0]
        fields["histogram"].append(counts)

        confident = p > objectness_floor
        fields["confident_sum"].append(d[confident].sum())
        fields["confident_count"].append(confident.sum())
        largest = s.detach().max() if len(s) else nothing()
        fields["score_max"].append(largest.to(precision))

        targets = range(target_edges[group], target_edges[group + 1])
        overlap = _overlap(boxes, target_boxes[targets.start : targets.stop])
        for column, target in enumerate(targets):
            matched = overlap[:, column] >= iou_threshold
            fields["target_matches"].append(matched.sum().int())
            fields["target_objectness"].append(_largest(p[matched].to(precision)))
            fields["target_foreground"].append(_largest(q[matched].to(precision)))
            true_class = int(target_classes[target])
            probability = class_probability(z[matched], max(true_class, 0)).to(precision)
            unknown = nothing() + float("nan")
            fields["target_true_class"].append(
                _largest(probability) if true_class >= 0 else unknown
            )
        alone = (overlap < UNMATCHED_IOU).all(1)
        fields["unmatched_foreground"].append((alone & (q > FOREGROUND_FLOOR)).sum())

    empty = InconsistencyResult(
        tau_sum=nothing(0, dtype=torch.float64),
        tau_count=nothing(0, dtype=torch.int64),
        confident_sum=nothing(0, dtype=torch.float64),
        confident_count=nothing(0, dtype=torch.int64),
        score_max=nothing(0),
        nonfinite=nothing(0, dtype=torch.int64),
        histogram=nothing(0, num_bins, dtype=torch.int64),
        target_objectness=nothing(0),
        target_foreground=nothing(0),
        target_true_class=nothing(0),
        target_matches=nothing(0, dtype=torch.int32),
        unmatched_foreground=nothing(0, dtype=torch.int64),
    )
    return InconsistencyResult(
        *(torch.stack(fields[name]) if fields[name] else getattr(empty, name) for name in fields)
    )


def _largest(values: torch.Tensor) -> torch.Tensor:
    """The largest of (n,) values, 0 of none; its gradient goes to the first that equals it."""
    return values[values.argmax()] if len(values) else values.new_zeros(())


def _overlap(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of each proposal with each target; 0 where the target is not finite."""
    targets = torch.where(targets.isfinite().all(1, keepdim=True), targets, 0.0)
    return intersection_over_union(boxes, targets)
