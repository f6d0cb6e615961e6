# SPDX-License-Identifier: Apache-2.0
"""Pruning what gives way to small changes of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.func import functional_call

from d2defense.engine.loader import build_train_loader
from d2defense.registry import REMOVAL_REGISTRY

from ..channels import ChannelLayer, channel_layers
from ..standstill import kept_statistics, standing_still
from .base import RemovalMethod


@REMOVAL_REGISTRY.register("anp")
class AdversarialNeuronPruning(RemovalMethod):
    """Adversarial neuron pruning: silence channels that a small change of weights turns bad.

    ANP, Wu and Wang, NeurIPS 2021, arXiv 2110.14430. A mask over channels is learnt that does well
    on clean images as they are and while an adversary changes each channel's weight and bias by up
    to a share (equation 5); channels whose mask ends below a threshold are silenced. Nothing is
    fine-tuned afterwards, as in the paper. Decisions for detectors: channels are those of all
    convolutions and linear layers but the output layers, changed by the norm behind them where
    there is one; the loss is the detector's own; batch normalization keeps its statistics.
    """

    fine_tunes: ClassVar[bool] = False

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.ANP.*``."""
        # Steps in which the mask is learnt.
        node.STEPS = 100
        # Largest relative change of a weight by the adversary.
        node.EPSILON = 0.4
        # Share of the loss without the adversary.
        node.ALPHA = 0.2
        # Learning rate of the mask.
        node.LR = 0.1
        # Channels whose mask is below are silenced.
        node.THRESHOLD = 0.2

    def prepare(self, model: nn.Module) -> list[str]:
        """Learn the mask and prune; names of the tensors of layers that lose a channel."""
        layers = channel_layers(model)
        masks = self._learn_masks(model, layers)
        changed = []
        for layer in layers:
            low = masks[layer.name] < self.cfg.REMOVAL.ANP.THRESHOLD
            if low.any():
                layer.silence(low)
                changed += layer.scaled()
        return changed

    def _learn_masks(self, model: nn.Module, layers: Sequence[ChannelLayer]) -> dict[str, Tensor]:
        settings = self.cfg.REMOVAL.ANP
        loader = iter(build_train_loader(self.cfg, DatasetMapper(self.cfg, is_train=True)))
        masks = {
            each.name: torch.ones(len(each.layer.weight), device=model.device, requires_grad=True)
            for each in layers
        }
        optimizer = torch.optim.SGD(masks.values(), lr=settings.LR, momentum=0.9)
        # It has losses in training mode only.
        with standing_still(model), EventStorage(1), kept_statistics(model.train()):
            for _ in range(settings.STEPS):
                self._step(model, layers, masks, next(loader), optimizer)
        return {name: mask.detach() for name, mask in masks.items()}

    def _step(
        self,
        model: nn.Module,
        layers: Sequence[ChannelLayer],
        masks: Mapping[str, Tensor],
        batch: list[dict[str, Any]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        settings = self.cfg.REMOVAL.ANP
        epsilon = settings.EPSILON
        # One step of the adversary from a random start, as the paper has it.
        factors = {
            name: tuple(
                (epsilon * (2 * torch.rand_like(mask) - 1)).requires_grad_() for _ in range(2)
            )
            for name, mask in masks.items()
        }
        flat = [tensor for pair in factors.values() for tensor in pair]
        fixed = {name: mask.detach() for name, mask in masks.items()}
        loss = self._loss(model, layers, fixed, factors, batch)
        gradients = torch.autograd.grad(loss, flat, allow_unused=True)
        with torch.no_grad():
            for tensor, gradient in zip(flat, gradients, strict=True):
                if gradient is not None:
                    tensor.add_(epsilon * gradient.sign()).clamp_(-epsilon, epsilon)
        worst = {name: tuple(t.detach() for t in pair) for name, pair in factors.items()}
        optimizer.zero_grad()
        natural = self._loss(model, layers, masks, {}, batch)
        attacked = self._loss(model, layers, masks, worst, batch)
        (settings.ALPHA * natural + (1 - settings.ALPHA) * attacked).backward()
        optimizer.step()
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0, 1)

    @staticmethod
    def _loss(
        model: nn.Module,
        layers: Sequence[ChannelLayer],
        masks: Mapping[str, Tensor],
        factors: Mapping[str, tuple[Tensor, ...]],
        batch: list[dict[str, Any]],
    ) -> Tensor:
        changed = {}
        for layer in layers:
            mask = masks[layer.name]
            of_weight, of_bias = factors.get(layer.name, (0.0, 0.0))
            for name, tensor in layer.scaled().items():
                factor = mask + (of_bias if name.endswith(".bias") else of_weight)
                changed[name] = tensor * factor.reshape(-1, *[1] * (tensor.dim() - 1))
        return sum(functional_call(model, changed, (batch,)).values())
