# SPDX-License-Identifier: Apache-2.0
"""A ResNet-FPN small enough to train from scratch on one CPU core."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet


@BACKBONE_REGISTRY.register()
def build_tiny_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """FPN over a narrow ResNet of basic blocks, sized by ``MODEL.TINY_RESNET``.

    Strides and feature names are those of Detectron2's ResNets (``res2`` .. ``res5`` at 4 .. 32
    pixels, ``p2`` .. ``p5`` behind the FPN), so heads and anchors are configured as usual.
    ``MODEL.RESNETS.NORM``, ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.FPN`` mean what they mean
    for the stock builders. Nothing is frozen: the backbone trains from scratch.

    Args:
        cfg: configuration with d2defense's keys.
        input_shape: channels of the input image.

    Returns:
        A :class:`Backbone` whose features are named ``p2`` .. ``p5``.
    """
    tiny = cfg.MODEL.TINY_RESNET
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(input_shape.channels, tiny.STEM_CHANNELS, norm)
    stages, in_channels = [], tiny.STEM_CHANNELS
    for index, (num_blocks, channels) in enumerate(
        zip(tiny.BLOCKS, tiny.STAGE_CHANNELS, strict=True)
    ):
        strides = [1 if index == 0 else 2] + [1] * (num_blocks - 1)
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks,
                in_channels=in_channels,
                out_channels=channels,
                norm=norm,
                stride_per_block=strides,
            )
        )
        in_channels = channels
    bottom_up = ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
