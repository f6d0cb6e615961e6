# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning towards flat minima."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.func import functional_call

from d2defense.registry import REMOVAL_REGISTRY

from .base import RemovalMethod

# So that a weight of 0 can be moved, too (Kwon et al., arXiv 2102.11600, section 4).
_LEAST = 0.01


@REMOVAL_REGISTRY.register("ft_sam")
class SharpnessAwareFineTuning(RemovalMethod):
    """Sharpness-aware fine-tuning: descend where the loss is worst nearby (FT-SAM).

    Zhu et al., ICCV 2023, arXiv 2304.11823: weights of backdoored neurons are large, and a
    perturbation in proportion to the weights moves those most. A step takes the gradient at ``w +
    rho T_w^2 g / |T_w g|`` with ``T_w = |w|`` and g the gradient at w (equation 4). Decisions for
    detectors: g is that of all losses together, and both passes draw their own proposals.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.FT_SAM.*``."""
        # Radius of the perturbation.
        node.RHO = 2.0

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own at the perturbed weights, with gradient to those as they are."""
        learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
        loss = sum(model(batch).values())
        gradients = torch.autograd.grad(loss, list(learns.values()), allow_unused=True)
        moved = perturbed(learns, gradients, self.cfg.REMOVAL.FT_SAM.RHO)
        return functional_call(model, moved, (batch,))


def perturbed(
    weights: dict[str, Tensor], gradients: tuple[Tensor | None, ...], rho: float
) -> dict[str, Tensor]:
    """The weights where the loss is worst nearby, to first order.

    Args:
        weights: by name; gradients of the result flow to them unchanged.
        gradients: of the loss, one a weight; None where it does not depend on it.
        rho: radius.
    """
    scales = {name: weight.detach().abs() + _LEAST for name, weight in weights.items()}
    pairs = [(name, g) for name, g in zip(weights, gradients, strict=True) if g is not None]
    if not pairs:
        return dict(weights)
    norm = torch.stack([(scales[name] * g).norm() for name, g in pairs]).norm().clamp(min=1e-12)
    return weights | {
        name: weights[name] + rho * scales[name].square() * g / norm for name, g in pairs
    }
