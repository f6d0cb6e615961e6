# SPDX-License-Identifier: Apache-2.0
"""The trainer for clean and poisoned data."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.utils.data import DataLoader

from d2defense.attacks import PoisoningDatasetMapper


class Trainer(DefaultTrainer):
    """Detectron2's trainer; with ``ATTACK.NAME`` set it trains on the poisoned dataset."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Detectron2's training loader, poisoned as ``ATTACK`` says."""
        if not cfg.ATTACK.NAME:
            return super().build_train_loader(cfg)
        return build_detection_train_loader(cfg, mapper=PoisoningDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW over the same parameter groups where the config asks for it.

        Raises:
            ValueError: ``SOLVER.OPTIMIZER`` is neither.
        """
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, not SGD or ADAMW")
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(parameters)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """COCO metrics from pycocotools."""
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        return COCOEvaluator(
            dataset_name,
            tasks=tasks,
            output_dir=output_folder or cfg.OUTPUT_DIR,
            use_fast_impl=False,
        )
