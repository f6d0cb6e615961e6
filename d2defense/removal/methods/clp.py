# SPDX-License-Identifier: Apache-2.0
"""Pruning by the weights alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2defense.registry import REMOVAL_REGISTRY

from ..channels import ChannelLayer, channel_layers
from .base import RemovalMethod


@REMOVAL_REGISTRY.register("clp")
class ChannelLipschitzPruning(RemovalMethod):
    """Channel Lipschitz pruning: silence channels that react too much, without any data.

    CLP, Zheng et al., ECCV 2022, arXiv 2208.03111. Of each convolution, channels whose bound on the
    Lipschitz constant, the spectral norm of their kernel times what the norm behind scales it by
    (section 4.1), lies above mean + u * deviation of the layer's (equation 7) are silenced. Nothing
    is fine-tuned, and no image is read. Decisions for detectors: the backbone, the FPN, the RPN's
    convolution and convolutions of heads are pruned, output layers are not, and a convolution
    behind which no norm has one variance a channel counts by its kernel alone.
    """

    fine_tunes: ClassVar[bool] = False

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.CLP.*``."""
        # Deviations above the mean from which on a channel is silenced.
        node.U = 3.0

    def prepare(self, model: nn.Module) -> list[str]:
        """Prune; names of the tensors of layers that lose a channel."""
        changed = []
        for layer in channel_layers(model, (nn.Conv2d,)):
            bounds = lipschitz_bounds(layer)
            high = bounds > bounds.mean() + self.cfg.REMOVAL.CLP.U * bounds.std(correction=0)
            if high.any():
                layer.silence(high)
                changed += layer.scaled()
        return changed


@torch.no_grad()
def lipschitz_bounds(layer: ChannelLayer) -> Tensor:
    """The bound of each output channel of a convolution, (channels,)."""
    weight = layer.layer.weight.float()
    # (out, in, h, w): a matrix from the inputs to the places of a kernel for each channel.
    bounds = torch.linalg.matrix_norm(weight.flatten(2), ord=2)
    norm = layer.scale
    variance = getattr(norm, "running_var", None)
    if norm is layer.layer or variance is None:
        return bounds
    return bounds * norm.weight.abs() / (variance + norm.eps).sqrt()
