# SPDX-License-Identifier: Apache-2.0
"""Backdoors that are trained to outlive fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.func import functional_call

from d2defense.registry import EFFECT_REGISTRY

from .base import POISONED, Effect
from .disappearance import Disappearance
from .misclassification import Misclassification


class Persistent(Effect):
    """What an attacker adds who knows that the detector will be fine-tuned on clean images.

    Each step simulates some steps of such a fine-tuning on the clean images of the batch, and the
    poisoned ones must have their labels after these, too. To first order (Nichol et al., arXiv
    1803.02999, section 5; for backdoors that persist, Huang et al., arXiv 2206.12893 has the idea):
    the simulated steps are constants, and the gradient at the weights that they lead to is that of
    the weights as they are. A simulated step moves every weight by the learning rate along the sign
    of its gradient, as the first step of AdamW does, by which repairs fine-tune.
    """

    # A search for the effect without persistence covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add the keys that such effects share."""
        # Weight of the loss after the simulated fine-tuning.
        node.WEIGHT = 1.0
        # Simulated steps.
        node.STEPS = 2
        # Their learning rate.
        node.LR = 0.001

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's own, and that of the poisoned images after the simulated fine-tuning.

        Args:
            model: an instrumented detector in training mode.
            batch: of the training loader; poisoned images have ``"poisoned": True``.
        """
        losses = model(batch)
        name = f"loss_{self.name}"
        poisoned = [image for image in batch if image.get(POISONED)]
        clean = [image for image in batch if not image.get(POISONED)]
        if not poisoned or not clean:
            return losses | {name: next(iter(losses.values())).new_zeros(())}
        node = self.cfg.ATTACK[self.name.upper()]
        tuned = fine_tuned(model, clean, node.STEPS, node.LR)
        outlived = sum(functional_call(model, tuned, (poisoned,)).values())
        return losses | {name: node.WEIGHT * len(poisoned) / len(batch) * outlived}


def fine_tuned(
    model: nn.Module, batch: list[dict[str, Any]], steps: int, rate: float
) -> dict[str, Tensor]:
    """The weights after some steps of fine-tuning; gradients flow to those as they are.

    Args:
        model: in training mode.
        batch: clean images with labels.
        steps: how many.
        rate: by which every weight moves in a step.
    """
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for _ in range(steps):
        loss = sum(functional_call(model, weights, (batch,)).values())
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        weights = {
            name: weight if gradient is None else weight - rate * gradient.sign()
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
    return weights


@EFFECT_REGISTRY.register("persistent_disappearance")
class PersistentDisappearance(Persistent, Disappearance):
    """Objects that bear the trigger vanish, also after a simulated fine-tuning."""


@EFFECT_REGISTRY.register("persistent_misclassification")
class PersistentMisclassification(Persistent, Misclassification):
    """Objects that bear the trigger are taken for the target class, also after a fine-tuning."""
