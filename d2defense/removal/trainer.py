# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on the defender's set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.projects.point_rend import ColorAugSSDTransform

from d2defense.checkpoint import load_weights
from d2defense.engine import Trainer
from d2defense.engine.objective import Objective
from d2defense.registry import REMOVAL_REGISTRY

from .methods.base import RemovalMethod
from .rates import heads, scale_rate

logger = logging.getLogger(__name__)


class RemovalTrainer(Trainer):
    """Fine-tunes the weights of ``MODEL.WEIGHTS`` on clean images by ``REMOVAL.METHOD``.

    "renewal" is the paper's targeted renewal fine-tuning (arXiv 2409.16057, section 3.5); the
    other methods are in :mod:`d2defense.removal.methods`. Those that fine-tune do so with the whole
    model, photometric distortion and random flip; the rest is the method's.

    Raises:
        ValueError: another method, no weights to start from, or an attack in the same config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.REMOVAL.METHOD not in REMOVAL_REGISTRY:
            known = ", ".join(REMOVAL_REGISTRY.choices())
            raise ValueError(f"REMOVAL.METHOD is {cfg.REMOVAL.METHOD!r}, none of {known}")
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("removal starts from a checkpoint: set MODEL.WEIGHTS")
        if cfg.ATTACK.EFFECT:
            raise ValueError("removal trains on clean images: ATTACK.EFFECT must be empty")
        super().__init__(cfg)

    @property
    def method(self) -> RemovalMethod:
        """The removal method."""
        return self.objective.rule

    @property
    def modules(self) -> tuple[str, ...]:
        """The module groups that the method resets."""
        return self.method.modules(self.model)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> Objective:
        """The detector, in what computes the losses that ``REMOVAL.METHOD`` descends."""
        detector, method = super().build_model(cfg), REMOVAL_REGISTRY.get(cfg.REMOVAL.METHOD)(cfg)
        if cfg.REMOVAL.HEADS_LR_FACTOR == 0:
            # Before the optimizer takes what learns, and before processes agree on what that is.
            for parameter in heads(detector):
                parameter.requires_grad_(False)
        return Objective(detector, method)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume a run of the same output folder, or load ``MODEL.WEIGHTS`` and prepare them.

        Raises:
            CheckpointError: the weights cannot be used.
        """
        self._hook_states: dict[str, Any] = {}
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
        else:
            # Not Detectron2's loader: it tolerates weights that do not fit and unpickles ``.pkl``.
            load_weights(self.model, Path(self.cfg.MODEL.WEIGHTS))
            changed = self.method.prepare(self.model)
            if changed:
                method = self.cfg.REMOVAL.METHOD
                logger.info("%s changed %d tensors: %s", method, len(changed), ", ".join(changed))
        hooks = self.method.attach(self.model, self._fine_tune_another)
        self.register_hooks(hooks)
        for hook in hooks:
            if type(hook).__qualname__ in self._hook_states:
                hook.load_state_dict(self._hook_states[type(hook).__qualname__])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by the checkpointer; what the method's hooks know waits until they are there."""
        self._hook_states = dict(state_dict.get("hooks", {}))
        here = {type(hook).__qualname__ for hook in self._hooks}
        known = {name: state for name, state in self._hook_states.items() if name in here}
        super().load_state_dict(state_dict | {"hooks": known})

    def train(self) -> None:
        """Fine-tune, or write the weights as they are where the method has done its work before."""
        if self.method.fine_tunes:
            super().train()
        else:
            self.checkpointer.save("model_final")

    @classmethod
    def _fine_tune_another(cls, cfg: CfgNode) -> None:
        trainer = cls(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Objective) -> torch.optim.Optimizer:
        """The trainer's optimizer, with rates of their own for what is reset, and for the heads."""
        optimizer = super().build_optimizer(cfg, model.detector)
        named = dict(model.detector.named_parameters())
        reset = [named[name] for name in model.rule.reset_tensors(model.detector) if name in named]
        scale_rate(optimizer, reset, cfg.REMOVAL.RENEWED_LR_FACTOR)
        scale_rate(optimizer, heads(model.detector), cfg.REMOVAL.HEADS_LR_FACTOR)
        return optimizer

    @classmethod
    def build_mapper(cls, cfg: CfgNode) -> DatasetMapper:
        """The mapper of ``REMOVAL.AUGMENTATION``, with photometric distortion (section 3.5)."""
        augmentations = build_augmentation(cfg, is_train=True)
        if cfg.REMOVAL.PHOTOMETRIC_DISTORTION:
            distortion = ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT)
            share = cfg.REMOVAL.PHOTOMETRIC_SHARE
            augmentations.insert(0, T.RandomApply(distortion, prob=share))
        method = REMOVAL_REGISTRY.get(cfg.REMOVAL.AUGMENTATION or cfg.REMOVAL.METHOD)(cfg)
        return method.mapper(augmentations)
