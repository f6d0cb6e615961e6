# SPDX-License-Identifier: Apache-2.0
"""How much memory a detector's forward pass would take, found out without taking it."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

# Side that unresized images are taken to have, in pixels.
_UNRESIZED = 1333


def activation_bytes(skeleton: nn.Module, cfg: CfgNode) -> int:
    """Bytes of the outputs of all layers, in single precision, for one image of the largest size.

    An upper bound of what inference holds at one time, which frees most of them on its way.

    Args:
        skeleton: the detector on the meta device, where a pass computes shapes only.
        cfg: its configuration.

    Returns:
        The bytes, as far as the layers can run on the meta device (those of extensions cannot).
    """
    counted = beside = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal counted
        if isinstance(output, Tensor):
            counted += output.numel() * 4

    handles = [
        module.register_forward_hook(count)
        for module in skeleton.modules()
        if not any(module.children())
    ]
    try:
        with torch.no_grad(), torch.device("meta"):
            beside = _run(skeleton, cfg)
    except Exception:  # a layer without an implementation for the meta device ends the count
        pass
    finally:
        for handle in handles:
            handle.remove()
    return counted + beside + skeleton.prediction_bytes


def _run(skeleton: nn.Module, cfg: CfgNode) -> int:
    """Send one image of the largest size through the layers; bytes that none of them puts out."""
    short = cfg.INPUT.MIN_SIZE_TEST or _UNRESIZED
    long = max(short, cfg.INPUT.MAX_SIZE_TEST) if cfg.INPUT.MIN_SIZE_TEST else _UNRESIZED
    step = max(skeleton.backbone.size_divisibility, 1)
    height, width = (-(-side // step) * step for side in (short, long))
    features = skeleton.backbone(torch.empty(1, len(cfg.MODEL.PIXEL_MEAN), height, width))
    return sum(each.numel() * 4 for each in skeleton.run_shapes(features))
