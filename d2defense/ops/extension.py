# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: whether it is there, how it was built, what it tells the compiler."""

from __future__ import annotations

from typing import Any

import torch

from d2defense.ops.validation import check_devices

try:
    from d2defense import _C
except ImportError:
    _C = None


def extension_available() -> bool:
    """Whether ``d2defense._C`` could be imported, so that ``torch.ops.d2defense`` exists."""
    return _C is not None


def build_info() -> dict[str, Any]:
    """Say how the extension was built: compiler, CUDA, architectures, instruction sets.

    Returns:
        What ``d2defense._C.build_info()`` reports, or an empty dictionary where it is missing.
    """
    return {} if _C is None else dict(_C.build_info())


def _fake_inconsistency(
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
) -> tuple[torch.Tensor, ...]:
    """Shapes and types alone, for tracing; the order is that of the schema."""
    check_devices(
        objectness_logits,
        class_logits,
        proposal_boxes,
        proposal_offsets,
        target_boxes,
        target_offsets,
        target_classes,
    )
    groups = proposal_offsets.shape[0] - 1
    targets = target_boxes.shape[0]
    new = objectness_logits.new_empty
    return (
        new(groups, dtype=torch.float64),
        new(groups, dtype=torch.int64),
        new(groups, dtype=torch.float64),
        new(groups, dtype=torch.int64),
        new(groups, dtype=torch.float32),
        new(groups, dtype=torch.int64),
        new((groups, num_bins), dtype=torch.int64),
        new(targets, dtype=torch.float32),
        new(targets, dtype=torch.float32),
        new(targets, dtype=torch.float32),
        new(targets, dtype=torch.int32),
        new(groups, dtype=torch.int64),
    )


def _fake_forward(*arguments: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, ...]:
    """What an operator that keeps something for its backward pass returns beside the results."""
    objectness_logits, target_boxes = arguments[0], arguments[4]
    new = objectness_logits.new_empty
    return (
        *_fake_inconsistency(*arguments, **settings),
        new(objectness_logits.shape, dtype=torch.float32),
        new(objectness_logits.shape, dtype=torch.float32),
        new((3, target_boxes.shape[0]), dtype=torch.int64),
    )


def _fake_backward(
    *arguments: torch.Tensor | None, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of both logits, which follow five gradients and three kept tensors."""
    objectness_logits, class_logits = arguments[8:10]
    return (
        objectness_logits.new_empty(objectness_logits.shape),
        class_logits.new_empty(class_logits.shape),
    )


if _C is not None:
    torch.library.register_fake("d2defense::inconsistency", _fake_inconsistency)
    torch.library.register_fake("d2defense::_inconsistency_forward", _fake_forward)
    torch.library.register_fake("d2defense::_inconsistency_backward", _fake_backward)
