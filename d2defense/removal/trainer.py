# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on the defender's set."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.projects.point_rend import ColorAugSSDTransform
from torch.utils.data import DataLoader

from d2defense.checkpoint import load_weights
from d2defense.engine import Trainer
from d2defense.modeling import classification_modules

from .reset import reset_modules

logger = logging.getLogger(__name__)

METHODS = ("renewal", "vanilla")


class RenewalTrainer(Trainer):
    """Fine-tunes the weights of ``MODEL.WEIGHTS`` on clean images, module groups reset first.

    ``REMOVAL.METHOD`` "renewal" is the paper's targeted renewal fine-tuning (arXiv 2409.16057,
    section 3.5): ``REMOVAL.MODULES``, or those that classify proposals, are reset, then the whole
    model is fine-tuned with photometric distortion and random flip. "vanilla" does the same
    without the reset.

    Raises:
        ValueError: another method, no weights to start from, or an attack in the same config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.REMOVAL.METHOD not in METHODS:
            raise ValueError(
                f"REMOVAL.METHOD is {cfg.REMOVAL.METHOD!r}, none of {', '.join(METHODS)}"
            )
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("removal starts from a checkpoint: set MODEL.WEIGHTS")
        if cfg.ATTACK.NAME:
            raise ValueError("removal trains on clean images: ATTACK.NAME must be empty")
        super().__init__(cfg)

    @property
    def modules(self) -> tuple[str, ...]:
        """The module groups that the method resets."""
        if self.cfg.REMOVAL.METHOD != "renewal":
            return ()
        return tuple(self.cfg.REMOVAL.MODULES) or classification_modules(self.checkpointer.model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume a run of the same output folder, or load ``MODEL.WEIGHTS`` and reset modules.

        Raises:
            CheckpointError: the weights cannot be used.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            return
        # Not Detectron2's loader: it tolerates weights that do not fit and unpickles ``.pkl``.
        model = self.checkpointer.model
        load_weights(model, Path(self.cfg.MODEL.WEIGHTS))
        if self.modules:
            names = reset_modules(model, self.cfg, self.modules, self.cfg.REMOVAL.SEED)
            logger.info("reset %d tensors: %s", len(names), ", ".join(names))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Detectron2's training loader with photometric distortion in front (section 3.5)."""
        augmentations = build_augmentation(cfg, is_train=True)
        if cfg.REMOVAL.PHOTOMETRIC_DISTORTION:
            augmentations.insert(0, ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
        mapper = DatasetMapper(cfg, is_train=True, augmentations=augmentations)
        return build_detection_train_loader(cfg, mapper=mapper)
