# SPDX-License-Identifier: Apache-2.0
"""A detector with the losses that a removal method gives it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .methods.base import RemovalMethod


class Objective(nn.Module):
    """What a step of fine-tuning calls, and what DistributedDataParallel wraps.

    A method may run the detector, or parts of it, as often as it likes: all of that is inside the
    one forward pass for which gradients are shared between processes.

    Args:
        detector: that is trained.
        method: says what is descended.
    """

    def __init__(self, detector: nn.Module, method: RemovalMethod) -> None:
        super().__init__()
        self.detector = detector
        self.method = method

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The method's losses of a batch of training input."""
        return self.method.losses(self.detector, batch)
