# SPDX-License-Identifier: Apache-2.0
"""Checks of the inconsistency operator's arguments, for the reference and for tracing.

``csrc/arguments.cpp`` makes the same ones for the compiled operator, which takes no float64.
"""

from __future__ import annotations

import math

import torch

# float64 is for the reference alone: gradcheck needs it.
_LOGIT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_arguments(
    objectness_logits: torch.Tensor,
    class_logits: torch.Tensor,
    proposal_boxes: torch.Tensor,
    proposal_offsets: torch.Tensor,
    target_boxes: torch.Tensor,
    target_offsets: torch.Tensor,
    target_classes: torch.Tensor,
    *,
    epsilon: float,
    topk: int,
    objectness_floor: float,
    iou_threshold: float,
    num_bins: int,
) -> None:
    """Raise if an argument of ``inconsistency`` is not as documented.

    Raises:
        ValueError: shape, device or value; the message names the argument.
        TypeError: element type; the message names the argument.
    """
    _check_shape("objectness_logits", objectness_logits, "N")
    proposals = objectness_logits.shape[0]
    _check_shape("class_logits", class_logits, "N, K + 1")
    if class_logits.shape[0] != proposals or class_logits.shape[1] < 2:
        raise ValueError(
            f"class_logits must have shape [{proposals}, K + 1] with K >= 1, "
            f"got {list(class_logits.shape)}"
        )
    _check_shape("proposal_boxes", proposal_boxes, "N, 4")
    _check_shape("target_boxes", target_boxes, "M, 4")
    _check_shape("target_classes", target_classes, "M")
    targets = target_boxes.shape[0]
    for name, boxes, rows in (
        ("proposal_boxes", proposal_boxes, proposals),
        ("target_boxes", target_boxes, targets),
    ):
        if tuple(boxes.shape) != (rows, 4):
            raise ValueError(f"{name} must have shape [{rows}, 4], got {list(boxes.shape)}")
        _check_type(name, boxes, (torch.float32,))
    if target_classes.shape[0] != targets:
        raise ValueError(
            f"target_classes must have shape [{targets}], got {list(target_classes.shape)}"
        )
    _check_type("objectness_logits", objectness_logits, _LOGIT_TYPES)
    _check_type("class_logits", class_logits, (objectness_logits.dtype,))
    _check_type("target_classes", target_classes, (torch.int64,))
    check_devices(
        objectness_logits,
        class_logits,
        proposal_boxes,
        proposal_offsets,
        target_boxes,
        target_offsets,
        target_classes,
    )
    _check_offsets("proposal_offsets", proposal_offsets, proposals)
    _check_offsets("target_offsets", target_offsets, targets)
    if target_offsets.shape != proposal_offsets.shape:
        raise ValueError(
            f"target_offsets must have shape {list(proposal_offsets.shape)} like "
            f"proposal_offsets, got {list(target_offsets.shape)}"
        )
    classes = class_logits.shape[1] - 1
    if bool(((target_classes < -1) | (target_classes >= classes)).any()):
        raise ValueError(f"target_classes must lie in -1 .. {classes - 1}")
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}")
    if topk < 0:
        raise ValueError(f"topk must be at least 0, got {topk}")
    if not 0 <= objectness_floor <= 1:
        raise ValueError(f"objectness_floor must lie in 0 .. 1, got {objectness_floor}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be above 0 and at most 1, got {iou_threshold}")
    if not 0 <= num_bins <= 2**20:
        raise ValueError(f"num_bins must lie in 0 .. {2**20}, got {num_bins}")


def check_devices(
    objectness_logits: torch.Tensor,
    class_logits: torch.Tensor,
    proposal_boxes: torch.Tensor,
    proposal_offsets: torch.Tensor,
    target_boxes: torch.Tensor,
    target_offsets: torch.Tensor,
    target_classes: torch.Tensor,
) -> None:
    """Raise unless logits and boxes are on one device, and offsets and classes on the CPU.

    Raises:
        ValueError: the message names the argument.
    """
    device, cpu = objectness_logits.device, torch.device("cpu")
    for name, tensor, wanted in (
        ("class_logits", class_logits, device),
        ("proposal_boxes", proposal_boxes, device),
        ("target_boxes", target_boxes, device),
        ("proposal_offsets", proposal_offsets, cpu),
        ("target_offsets", target_offsets, cpu),
        ("target_classes", target_classes, cpu),
    ):
        if tensor.device != wanted:
            raise ValueError(f"{name} must be on {wanted}, got {tensor.device}")


def _check_shape(name: str, tensor: torch.Tensor, shape: str) -> None:
    if tensor.dim() != shape.count(",") + 1:
        raise ValueError(f"{name} must have shape [{shape}], got {list(tensor.shape)}")


def _check_type(name: str, tensor: torch.Tensor, types: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in types:
        wanted = " or ".join(str(dtype) for dtype in types)
        raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")


def _check_offsets(name: str, offsets: torch.Tensor, rows: int) -> None:
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{name} must have shape [G + 1], got {list(offsets.shape)}")
    _check_type(name, offsets, (torch.int64,))
    if int(offsets[0]) != 0:
        raise ValueError(f"{name} must start at 0, got {int(offsets[0])}")
    if bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"{name} must not decrease")
    if int(offsets[-1]) != rows:
        raise ValueError(f"{name} must end at {rows}, got {int(offsets[-1])}")
