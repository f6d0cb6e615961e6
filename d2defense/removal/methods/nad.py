# SPDX-License-Identifier: Apache-2.0
"""Neural attention distillation: a fine-tuned teacher shows where to look."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.checkpoint import load_weights
from d2defense.registry import REMOVAL_REGISTRY

from .base import FineTune, RemovalMethod

logger = logging.getLogger(__name__)


@REMOVAL_REGISTRY.register("nad")
class NeuralAttentionDistillation(RemovalMethod):
    """Neural attention distillation: a fine-tuned teacher shows where to look.

    NAD, Li et al., ICLR 2021, arXiv 2101.05930, on a detector's feature maps. A teacher is the
    checkpoint after ``REMOVAL.NAD.TEACHER_ITER`` steps of plain fine-tuning. The checkpoint itself,
    the student, is then fine-tuned with the detection losses and ``REMOVAL.NAD.WEIGHT`` times the
    distance of its attention maps from the teacher's, summed over the backbone's feature maps
    (equations 2 to 4).
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.NAD.*``."""
        # Steps of the teacher's fine-tuning.
        node.TEACHER_ITER = 200
        # Weight of the attention loss.
        node.WEIGHT = 1.0

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """Train the teacher unless its folder has one."""
        folder = Path(self.cfg.OUTPUT_DIR) / "teacher"
        weights = folder / "model_final.pth"
        if not weights.is_file():
            fine_tune(teacher_config(self.cfg, folder))
        self.teacher = build_model(self.cfg)
        load_weights(self.teacher, weights)
        self.teacher.eval().requires_grad_(False)
        logger.info("attention is distilled from %s", weights)
        return []

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own, and ``loss_attention``."""
        losses, features = model.losses_and_features(batch)
        with torch.no_grad():
            expected = self.teacher.features(batch)
        distance = attention_distance(features, expected)
        return losses | {"loss_attention": self.cfg.REMOVAL.NAD.WEIGHT * distance}


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
