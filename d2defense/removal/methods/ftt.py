# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with the checkpoint itself as the teacher."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from d2defense.registry import REMOVAL_REGISTRY

from ..self_distillation import SelfDistillation
from .base import FineTune, RemovalMethod


@REMOVAL_REGISTRY.register("ftt")
class SelfDistilledFineTuning(RemovalMethod):
    """Self-distilled fine-tuning: plain fine-tuning, held near what the checkpoint says.

    In the way of FTT (Zhang et al. 2024, for classifiers), of which only the idea was at hand:
    clean images are learnt with their labels and with the suspect's own outputs. What a detector's
    outputs are, and how they are compared, is our decision (:class:`SelfDistillation`).
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.FTT.*``."""
        # Weight of the self-distillation.
        node.WEIGHT = 1.0

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """Load the checkpoint as a teacher."""
        self._distillation = SelfDistillation(self.cfg)
        return []

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own, and ``loss_distillation``."""
        losses, features = model.losses_and_features(batch)
        distance = self._distillation.loss(model, batch, features)
        return losses | {"loss_distillation": self.cfg.REMOVAL.FTT.WEIGHT * distance}
