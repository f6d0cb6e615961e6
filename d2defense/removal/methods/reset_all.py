# SPDX-License-Identifier: Apache-2.0
"""Training from scratch on the defender's set: the floor under every other method."""

from __future__ import annotations

from torch import nn

from d2defense.registry import REMOVAL_REGISTRY

from ..reset import fresh_state_dict
from .base import RemovalMethod


@REMOVAL_REGISTRY.register("reset_all")
class ResetAll(RemovalMethod):
    """Training from scratch: forgets the checkpoint, the floor under every other method."""

    def reset_tensors(self, model: nn.Module) -> list[str]:
        """All of them."""
        return list(model.state_dict())

    def prepare(self, model: nn.Module) -> list[str]:
        """Give every tensor the initialisation of ``REMOVAL.SEED``."""
        state = fresh_state_dict(self.cfg, self.cfg.REMOVAL.SEED)
        model.load_state_dict(state)
        return list(state)
