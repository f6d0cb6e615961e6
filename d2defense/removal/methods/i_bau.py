# SPDX-License-Identifier: Apache-2.0
"""Unlearning one perturbation that fits all images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.registry import REMOVAL_REGISTRY

from .base import RemovalMethod


@REMOVAL_REGISTRY.register("i_bau")
class UniversalUnlearning(RemovalMethod):
    """Backdoor unlearning by a universal perturbation: what hurts all images most, true labels.

    I-BAU, Zeng et al., ICLR 2022, arXiv 2110.03735: minimise over weights the largest loss under
    one perturbation of all images, whose norm is bounded. Decisions for detectors: the perturbation
    is one picture that is scaled to each image; its bound is the root mean square of its values
    (the paper's 10 for 32 x 32 images of range 0..1 is 0.18); it raises the detector's own loss.
    The paper's hypergradient has an implicit term with second derivatives, which RoIAlign has not:
    that term is left out.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.I_BAU.*``."""
        # Sides of the perturbation in pixels.
        node.SIZE = 128
        # Root mean square of the perturbation, of the range.
        node.BOUND = 0.18
        # Steps that the perturbation takes for one of the weights.
        node.STEPS = 2
        # Step of the perturbation, of its bound.
        node.STEP = 0.5
        # Share of the images that bear it.
        node.SHARE = 0.5

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self._delta: Tensor | None = None

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own, of images some of which bear the perturbation."""
        settings = self.cfg.REMOVAL.I_BAU
        delta = self._delta
        if delta is None:
            delta = torch.zeros(1, 3, settings.SIZE, settings.SIZE, device=model.device)
        for _ in range(settings.STEPS):
            delta = self._ascend(model, batch, delta)
        self._delta = delta
        bears = np.random.random(len(batch)) < settings.SHARE
        shown = [
            _shifted(image, delta) if chosen else image
            for image, chosen in zip(batch, bears, strict=True)
        ]
        return model(shown)

    def _ascend(self, model: nn.Module, batch: list[dict[str, Any]], delta: Tensor) -> Tensor:
        """One step of the perturbation along the gradient, back to its bound."""
        settings = self.cfg.REMOVAL.I_BAU
        delta = delta.detach().requires_grad_()
        # What this pass says of itself is not the step's.
        with EventStorage(1):
            loss = sum(model([_shifted(image, delta) for image in batch]).values())
        (gradient,) = torch.autograd.grad(loss, delta)
        unit = gradient / gradient.square().mean().sqrt().clamp(min=1e-12)
        moved = delta.detach() + settings.STEP * settings.BOUND * unit
        size = moved.square().mean().sqrt().clamp(min=1e-12)
        return moved * (settings.BOUND / size).clamp(max=1)


def _shifted(image: dict[str, Any], delta: Tensor) -> dict[str, Any]:
    """A training input with the perturbation, of range 1, scaled over its image."""
    pixels = image["image"].to(delta.device).float()
    scaled = F.interpolate(delta, pixels.shape[1:], mode="bilinear", align_corners=False)
    return {**image, "image": (pixels + 255 * scaled[0]).clamp(0, 255)}
