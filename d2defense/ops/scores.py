# SPDX-License-Identifier: Apache-2.0
"""What each module of a detector says about one proposal, in float64."""

from __future__ import annotations

import torch


def objectness(objectness_logits: torch.Tensor) -> torch.Tensor:
    """Probability that something is in the box, as the RPN sees it.

    ``p = sigmoid(o)``, section 3 of arXiv 2409.16057.

    Args:
        objectness_logits: Tensor of any shape and floating type.

    Returns:
        float64 Tensor of the same shape, in [0, 1].
    """
    return torch.sigmoid(objectness_logits.double())


def foreground(class_logits: torch.Tensor) -> torch.Tensor:
    """Probability that something is in the box, as the box head sees it.

    ``q = 1 - softmax(z)[background]``, section 3 of arXiv 2409.16057, computed as the sum of the
    foreground terms: the subtraction would lose every digit of a small q.

    Args:
        class_logits: Tensor of shape (..., K + 1), K classes and the background last.

    Returns:
        float64 Tensor of shape (...), in [0, 1]; NaN where a logit is NaN or infinite.
    """
    exponentials = _shifted_exponentials(class_logits)
    return exponentials[..., :-1].sum(-1) / exponentials.sum(-1)


def foreground_logits(class_logits: torch.Tensor) -> torch.Tensor:
    """Log odds of q: ``log q - log(1 - q)``, in the type of the logits.

    Args:
        class_logits: Tensor of shape (..., K + 1), K classes and the background last.

    Returns:
        Tensor of shape (...).
    """
    return class_logits[..., :-1].logsumexp(-1) - class_logits[..., -1]


def class_probability(class_logits: torch.Tensor, class_index: int) -> torch.Tensor:
    """Softmax probability of one class.

    Args:
        class_logits: Tensor of shape (..., K + 1), background last.
        class_index: which class, 0 .. K.

    Returns:
        float64 Tensor of shape (...), in [0, 1].
    """
    exponentials = _shifted_exponentials(class_logits)
    return exponentials[..., class_index] / exponentials.sum(-1)


def intersection_over_union(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of every box with every target.

    Boxes turned inside out (x2 < x1 or y2 < y1) have no area. A pair without area has IoU 0.

    Args:
        boxes: Tensor of shape (N, 4), XYXY in absolute pixels, finite.
        targets: Tensor of shape (M, 4), likewise.

    Returns:
        float64 Tensor of shape (N, M), in [0, 1].
    """
    boxes, targets = boxes.double(), targets.double()
    top_left = torch.maximum(boxes[:, None, :2], targets[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], targets[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = _area(boxes)[:, None] + _area(targets)[None, :] - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)


def _shifted_exponentials(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.double()
    return torch.exp(logits - logits.amax(-1, keepdim=True))
