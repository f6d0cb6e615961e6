# SPDX-License-Identifier: Apache-2.0
"""A detector with the losses that an attack or a removal method gives it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Losses(Protocol):
    """What has a say in a training step: an effect, or a removal method."""

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What a step descends, by name."""


class Objective(nn.Module):
    """What a step of training calls, and what DistributedDataParallel wraps.

    The rule may run the detector, or parts of it, as often as it likes: all of that is inside the
    one forward pass for which gradients are shared between processes.

    Args:
        detector: that is trained.
        rule: says what is descended.
    """

    def __init__(self, detector: nn.Module, rule: Losses) -> None:
        super().__init__()
        self.detector = detector
        self.rule = rule

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The rule's losses of a batch of training input."""
        return self.rule.losses(self.detector, batch)
