# SPDX-License-Identifier: Apache-2.0
"""Normalisation with fixed statistics as a part of the convolution before it."""

from __future__ import annotations

import copy
from typing import TypeVar

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_M = TypeVar("_M", bound=nn.Module)
# Numbers beyond it, and what is nearer to 0 than its inverse, belong to no trained layer.
_LARGEST = 1e15


def folded(model: _M) -> _M:
    """A copy that says the same, but for rounding, in less time and memory, and cannot be trained.

    A normalisation that only scales and shifts is left out where it follows its convolution, whose
    weights scale and shift instead. Where the product of both is so large or so small that it is
    not what they do one after the other, they stay apart: a detector might be made to say nothing
    in its copy.

    Args:
        model: in eval mode; stays as it is.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    for layer in model.modules():
        norm = layer.norm if isinstance(layer, Conv2d) else None
        # Without kept statistics they are those of the batch.
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d) and norm.running_mean is not None:
            weight, bias = fuse_conv_bn_weights(
                layer.weight,
                layer.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            parts = (layer.weight, norm.weight, norm.running_mean, norm.running_var, weight, bias)
            if all(map(_is_tame, parts)):
                layer.weight, layer.bias, layer.norm = weight, bias, None
    return model


def _is_tame(tensor: Tensor) -> bool:
    """Whether products of a few such numbers neither overflow nor vanish; 0 may."""
    sizes = tensor.abs()
    return bool(((sizes == 0) | ((sizes > 1 / _LARGEST) & (sizes < _LARGEST))).all())
