# SPDX-License-Identifier: Apache-2.0
"""Both heads side by side on the same pooled features."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from torch import Tensor, nn

from .blocks import NonLocalBlock, WideningBlock


class ConvHead(nn.Sequential):
    """The convolution head: K blocks and a global average (arXiv 1904.06493, section 4.2).

    The first block widens the features, bottleneck blocks follow. With ``non_local``, K counts
    (K + 1) / 2 residual blocks with (K - 1) / 2 non-local blocks in turn; the paper's choice is
    K = 5 of these: 7.19 M (2^20) weights at 256 input and 1024 output channels.

    Args:
        in_channels: of the pooled features.
        channels: of the output; bottlenecks have a quarter of it inside.
        num_blocks: K.
        non_local: alternate with non-local blocks.
        norm: of the convolutions, as :func:`detectron2.layers.get_norm` names it.

    Raises:
        ValueError: no block, or an even number of them with non-local ones.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int = 1024,
        num_blocks: int = 5,
        non_local: bool = True,
        norm: str = "BN",
    ) -> None:
        if num_blocks < 1 or (non_local and num_blocks % 2 == 0):
            raise ValueError(
                f"a convolution head of {num_blocks} blocks: at least one is needed, and an odd "
                "number where residual and non-local blocks alternate"
            )
        blocks: list[nn.Module] = [WideningBlock(in_channels, channels, norm)]
        while len(blocks) < num_blocks:
            if non_local:
                blocks.append(NonLocalBlock(channels, norm))
            blocks.append(
                BottleneckBlock(
                    channels, channels, bottleneck_channels=max(1, channels // 4), norm=norm
                )
            )
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output_shape = ShapeSpec(channels=channels)


@ROI_BOX_HEAD_REGISTRY.register()
class DoubleHead(nn.Module):
    """The fully connected head and the convolution head of Double-Head R-CNN.

    Attributes:
        fc_head: Detectron2's own, two layers of 1024 in the paper.
        conv_head: see :class:`ConvHead`.
    """

    @configurable
    def __init__(self, *, fc_head: FastRCNNConvFCHead, conv_head: ConvHead) -> None:
        super().__init__()
        self.fc_head = fc_head
        self.conv_head = conv_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, nn.Module]:
        """Heads as ``MODEL.ROI_BOX_HEAD`` and ``MODEL.ROI_DOUBLE_HEAD`` size them."""
        node = cfg.MODEL.ROI_DOUBLE_HEAD
        return {
            "fc_head": FastRCNNConvFCHead(cfg, input_shape),
            "conv_head": ConvHead(
                input_shape.channels,
                channels=node.CONV_DIM,
                num_blocks=node.NUM_BLOCKS,
                non_local=node.NON_LOCAL,
                norm=node.NORM,
            ),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both heads, (N, fc_dim) and (N, conv_dim), from (N, C, H, W)."""
        return self.fc_head(x), self.conv_head(x)

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the features that are classified, those of :attr:`fc_head`."""
        return self.fc_head.output_shape
