# SPDX-License-Identifier: Apache-2.0
"""The fused inconsistency operator: from the logits of both heads to every statistic."""

from __future__ import annotations

import functools
import warnings

import torch

from d2defense.ops.extension import extension_available
from d2defense.ops.reference import inconsistency_reference
from d2defense.ops.result import InconsistencyResult


def inconsistency(
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
    """Compare what the RPN and the box head say about the same proposals.

    With ``p = sigmoid(o)``, ``q = 1 - softmax(z)[background]`` and ``s = |p - q|`` (section 3 of
    arXiv 2409.16057) it sums, counts and matches in one pass over the logits, without a
    temporary of their size. The same bits on every run and any number of threads. It calls
    ``torch.ops.d2defense.inconsistency``; where the compiled extension is missing, it warns once
    and calls :func:`inconsistency_reference`.

    ``tau_sum``, ``confident_sum`` and the three maxima of each target have gradients with respect
    to both logits (reverse mode, first order). A maximum hands its gradient to one proposal, the
    first of those that have it; the rest of the result has none.

    Logits and boxes are on one device, offsets and classes on the CPU whatever the device.

    Args:
        objectness_logits: Tensor of shape (N,), float32, float16 or bfloat16: the RPN's logit of
            each proposal, inside a group in descending order.
        class_logits: Tensor of shape (N, K + 1) of the same type: the box head's logits,
            background last.
        proposal_boxes: float32 Tensor of shape (N, 4), XYXY in absolute pixels.
        proposal_offsets: int64 Tensor of shape (G + 1,): group g (one triggered image) owns the
            rows ``proposal_offsets[g] .. proposal_offsets[g + 1]``.
        target_boxes: float32 Tensor of shape (M, 4): the objects that bear a trigger. One with a
            NaN or infinite coordinate matches nothing.
        target_offsets: int64 Tensor of shape (G + 1,): likewise the targets of each group.
        target_classes: int64 Tensor of shape (M,): the true class of each target, -1 = unknown.
        epsilon: negligible difference; only s above it counts for tau.
        topk: only a group's first ``topk`` proposals count for tau and the histogram; 0 = all.
        objectness_floor: p above which a proposal is confident, 0..1.
        iou_threshold: IoU from which a proposal matches a target, above 0 and at most 1.
        num_bins: bins of the histogram of s; 0 = none.

    Returns:
        :class:`InconsistencyResult`, on the device of the logits.

    Raises:
        ValueError: wrong shape, device or value, among them offsets that decrease or do not end
            at N or M; the message names the argument.
        TypeError: wrong element type; the message names the argument.
    """
    if not extension_available():
        _warn_of_fallback()
        return inconsistency_reference(
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
    return InconsistencyResult(
        *torch.ops.d2defense.inconsistency(
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
    )


@functools.cache
def _warn_of_fallback() -> None:
    warnings.warn(
        "d2defense._C is not built: the inconsistency operator runs as plain PyTorch in float64, "
        "which is much slower. Build it with `pip install --no-build-isolation -e .`",
        RuntimeWarning,
        stacklevel=3,
    )
