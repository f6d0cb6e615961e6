# SPDX-License-Identifier: Apache-2.0
"""A ResNet-FPN small enough to train from scratch on one CPU core."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet


@BACKBONE_REGISTRY.register()
def build_tiny_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A narrow ResNet of basic blocks, sized by ``MODEL.TINY_RESNET``.

    Feature names are those of Detectron2's ResNets; ``MODEL.RESNETS.NORM`` and
    ``MODEL.RESNETS.OUT_FEATURES`` mean what they mean for the stock builder. Nothing is frozen:
    the backbone trains from scratch.

    Args:
        cfg: configuration with d2defense's keys.
        input_shape: channels of the input image.

    Returns:
        A :class:`ResNet` with the stages up to the last of ``MODEL.RESNETS.OUT_FEATURES``.
    """
    tiny = cfg.MODEL.TINY_RESNET
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(input_shape.channels, tiny.STEM_CHANNELS, norm)
    depth = max(("res2", "res3", "res4", "res5").index(f) for f in cfg.MODEL.RESNETS.OUT_FEATURES)
    stages, in_channels = [], tiny.STEM_CHANNELS
    for num_blocks, channels, stride in list(
        zip(tiny.BLOCKS, tiny.STAGE_CHANNELS, tiny.STRIDES, strict=True)
    )[: depth + 1]:
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks,
                in_channels=in_channels,
                out_channels=channels,
                norm=norm,
                stride_per_block=[stride] + [1] * (num_blocks - 1),
            )
        )
        in_channels = channels
    return ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_tiny_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """FPN over :func:`build_tiny_resnet_backbone`, configured by ``MODEL.FPN``.

    With the default strides, features ``p2`` .. ``p5`` are at 4 .. 32 pixels as in Detectron2's
    FPN models, so heads and anchors are configured as usual.

    Args:
        cfg: configuration with d2defense's keys.
        input_shape: channels of the input image.
    """
    return FPN(
        bottom_up=build_tiny_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
