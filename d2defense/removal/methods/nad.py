# SPDX-License-Identifier: Apache-2.0
"""Neural attention distillation: a fine-tuned teacher shows where to look."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.checkpoint import load_weights

from .base import RemovalMethod, registered

if TYPE_CHECKING:
    from ..trainer import RenewalTrainer

logger = logging.getLogger(__name__)


@registered("nad")
class NeuralAttentionDistillation(RemovalMethod):
    """NAD (Li et al., ICLR 2021, arXiv 2101.05930) on a detector's feature maps.

    A teacher is the checkpoint after ``REMOVAL.NAD.TEACHER_ITER`` steps of plain fine-tuning. The
    checkpoint itself, the student, is then fine-tuned with the detection losses and
    ``REMOVAL.NAD.WEIGHT`` times the distance of its attention maps from the teacher's, summed
    over the backbone's feature maps (equations 2 to 4).
    """

    def attach(self, trainer: RenewalTrainer) -> list[HookBase]:
        """Train the teacher unless its folder has one, and add the loss to the student's."""
        folder = Path(self.cfg.OUTPUT_DIR) / "teacher"
        weights = folder / "model_final.pth"
        if not weights.is_file():
            cfg = teacher_config(self.cfg, folder)
            teacher_trainer = type(trainer)(cfg)
            teacher_trainer.resume_or_load(resume=True)
            teacher_trainer.train()
        teacher = build_model(self.cfg)
        load_weights(teacher, weights)
        teacher.eval().requires_grad_(False)
        logger.info("attention is distilled from %s", weights)
        _Distillation(teacher, self.cfg.REMOVAL.NAD.WEIGHT).add_to(trainer.checkpointer.model)
        return []


def teacher_config(cfg: CfgNode, folder: Path) -> CfgNode:
    """The configuration of the teacher's fine-tuning."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.REMOVAL.METHOD = "vanilla"
    cfg.SOLVER.MAX_ITER = cfg.REMOVAL.NAD.TEACHER_ITER
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    folder.mkdir(parents=True, exist_ok=True)
    return cfg


def attention_map(features: Tensor) -> Tensor:
    """Unit-length attention of each image: the sum of squared channels (equation 2, p = 2).

    Args:
        features: Tensor of shape (G, C, H, W).

    Returns:
        Tensor of shape (G, H * W), rows of length 1.
    """
    return F.normalize(features.pow(2).sum(dim=1).flatten(1), dim=1)


def attention_distance(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Mean over images of the distance between attention maps, summed over layers (equation 3)."""
    distances = [
        (attention_map(student[name]) - attention_map(teacher[name])).norm(dim=1).mean()
        for name in teacher
    ]
    return torch.stack(distances).sum()


class _Distillation:
    """Adds ``loss_attention`` to the losses that a model in training returns."""

    def __init__(self, teacher: nn.Module, weight: float) -> None:
        self.teacher = teacher
        self.weight = weight
        self._pending: list[Tensor] = []

    def add_to(self, student: nn.Module) -> None:
        """Listen to the student's backbone and to its losses."""
        student.backbone.register_forward_hook(self._compare)
        student.register_forward_hook(self._extend)

    def _compare(self, module: nn.Module, inputs: tuple, output: dict[str, Tensor]) -> None:
        if module.training:
            with torch.no_grad():
                expected = self.teacher.backbone(*inputs)
            self._pending = [attention_distance(output, expected)]

    def _extend(
        self, module: nn.Module, inputs: object, losses: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        if not module.training or not self._pending:
            return None
        return losses | {"loss_attention": self.weight * self._pending.pop()}
