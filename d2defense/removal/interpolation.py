# SPDX-License-Identifier: Apache-2.0
"""Weights between those of the checkpoint and those that fine-tuning made of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from torch import Tensor, nn

from d2defense.checkpoint import load_weights

logger = logging.getLogger(__name__)


@torch.no_grad()
def interpolate(model: nn.Module, origin: Mapping[str, Tensor], share: float) -> None:
    """Move every weight and statistic of a model a share of the way back to where it began.

    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, section 3): ``share * origin + (1 - share) *
    model``. What is no real number, such as a count of batches, stays.

    Args:
        model: fine-tuned.
        origin: tensors of the same names and shapes.
        share: 0..1.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(origin[name].to(tensor), share)


class KeepShare(HookBase):
    """Puts a share of the checkpoint's weights into the result when the training has ended.

    Args:
        cfg: of the fine-tuning run; ``MODEL.WEIGHTS`` is the checkpoint.
        share: of the checkpoint.

    Raises:
        ValueError: the share is negative, or nothing of the fine-tuning would be left.
    """

    def __init__(self, cfg: CfgNode, share: float) -> None:
        if not 0 <= share < 1:
            key = f"REMOVAL.{cfg.REMOVAL.METHOD.upper()}.KEPT_SHARE"
            raise ValueError(f"{key} is {share}, not in [0, 1)")
        self._cfg, self._share = cfg, share
        self._is_done = False

    def after_train(self) -> None:
        """Called by the trainer, also where a training ends early, and then nothing is done."""
        trainer = self.trainer
        if not self._share or self._is_done or trainer.iter < trainer.max_iter:
            return
        checkpoint = build_model(self._cfg)
        load_weights(checkpoint, Path(self._cfg.MODEL.WEIGHTS))
        interpolate(trainer.model, checkpoint.state_dict(), self._share)
        logger.info("%g of the checkpoint's weights are kept", self._share)
        self._is_done = True
        trainer.checkpointer.save("model_final", iteration=trainer.max_iter - 1)

    def state_dict(self) -> dict[str, Any]:
        """Whether it is done, so that it is not done twice."""
        return {"is_done": self._is_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._is_done = state_dict["is_done"]
