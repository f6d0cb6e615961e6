# SPDX-License-Identifier: Apache-2.0
"""The channels of a detector that methods prune."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, FrozenBatchNorm2d, CycleBatchNormList)


@dataclass(frozen=True)
class ChannelLayer:
    """A layer inside a detector whose output channels can be pruned.

    Attributes:
        name: of the layer in the detector.
        layer: a convolution or a linear layer.
        scale_name: of the module in the detector whose weight and bias scale and shift its
            channels: the norm behind it, or the layer itself where there is none.
        scale: that module.
    """

    name: str
    layer: nn.Module
    scale_name: str
    scale: nn.Module

    @torch.no_grad()
    def silence(self, channels: Tensor) -> None:
        """Make channels zero on every image.

        Args:
            channels: bool Tensor of shape (channels,).
        """
        for tensor in self.scaled().values():
            tensor[channels.to(tensor.device)] = 0

    def scaled(self) -> dict[str, Tensor]:
        """The tensors whose rows are the channels, by name in the detector."""
        return {
            f"{self.scale_name}.{key}": tensor
            for key in ("weight", "bias")
            if (tensor := getattr(self.scale, key, None)) is not None
        }


def channel_layers(
    model: nn.Module, kinds: tuple[type, ...] = (nn.Conv2d, nn.Linear)
) -> list[ChannelLayer]:
    """The layers of a detector between image and output, in order.

    Those that say something of boxes, classes, masks or keypoints are left out: their channels
    mean something each.

    Args:
        model: an instrumented detector.
        kinds: of layers.
    """
    norms = _norms_behind(model)
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, kinds) or _is_output(name):
            continue
        scale_name, scale = norms.get(module, (name, module))
        if getattr(scale, "weight", None) is None:
            scale_name, scale = name, module
        found.append(ChannelLayer(name, module, scale_name, scale))
    return found


def _norms_behind(model: nn.Module) -> dict[nn.Module, tuple[str, nn.Module]]:
    """The norm behind each layer that has one, with its name in the model.

    A layer holds its norm, or a sequence holds both, as the towers of one-stage heads do.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "norm", None), nn.Module):
            found[module] = (f"{name}.norm", module.norm)
        if isinstance(module, nn.Sequential):
            for (_, layer), (key, norm) in pairwise(module.named_children()):
                if isinstance(norm, _NORMS):
                    found[layer] = (f"{name}.{key}", norm)
    return found


def _is_output(name: str) -> bool:
    parts = name.split(".")
    return "box_predictor" in parts or parts[-1] in (
        # The RPN's, those of one-stage heads, and those of masks and keypoints.
        "objectness_logits",
        "anchor_deltas",
        "cls_score",
        "bbox_pred",
        "ctrness",
        "predictor",
        "score_lowres",
    )
