# SPDX-License-Identifier: Apache-2.0
"""The trainer for clean and poisoned data."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
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
