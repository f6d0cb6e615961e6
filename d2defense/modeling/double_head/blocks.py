# SPDX-License-Identifier: Apache-2.0
"""The blocks that the convolution head is made of (arXiv 1904.06493, section 4.2, figure 5)."""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F


class WideningBlock(CNNBlockBase):
    """Residual block that raises the number of channels (figure 5a).

    A 3x3 convolution in the narrow width and a 1x1 one to the wide, beside a 1x1 shortcut.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        norm: of every convolution, as :func:`detectron2.layers.get_norm` names it.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride=1)
        self.conv1 = _conv(in_channels, in_channels, norm, kernel_size=3, padding=1)
        self.conv2 = _conv(in_channels, out_channels, norm)
        self.shortcut = _conv(in_channels, out_channels, norm)
        for layer in (self.conv1, self.conv2, self.shortcut):
            weight_init.c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Tensor of shape (N, out_channels, H, W) from one of shape (N, in_channels, H, W)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class NonLocalBlock(CNNBlockBase):
    """Attention between all positions of a proposal (figure 5c; Wang et al., arXiv 1711.07971).

    ``relu(x + W(softmax(theta(x)' phi(x)) g(x)))`` with half as many channels inside. It starts
    as the identity on activations that are not negative: the last layer is zero at first.

    Args:
        channels: of input and output.
        norm: of the last convolution, as :func:`detectron2.layers.get_norm` names it.
    """

    def __init__(self, channels: int, norm: str = "BN") -> None:
        super().__init__(channels, channels, stride=1)
        inner = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, inner, kernel_size=1)
        self.phi = nn.Conv2d(channels, inner, kernel_size=1)
        self.g = nn.Conv2d(channels, inner, kernel_size=1)
        self.output = _conv(inner, channels, norm)
        for layer in (self.theta, self.phi, self.g):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)
        nn.init.constant_(self.output.weight, 0)
        if self.output.bias is not None:
            nn.init.constant_(self.output.bias, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Tensor of the shape of ``x``, (N, C, H, W)."""
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        attention = torch.softmax(theta.transpose(1, 2) @ phi, dim=-1)
        attended = (g @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])
        return F.relu(x + self.output(attended))


def _conv(
    in_channels: int, out_channels: int, norm: str, kernel_size: int = 1, padding: int = 0
) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=padding,
        bias=not norm,
        norm=get_norm(norm, out_channels),
    )
