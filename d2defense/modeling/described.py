# SPDX-License-Identifier: Apache-2.0
"""Detectors that a LazyConfig describes: a tree of names and arguments, read as data.

Detectron2's ``instantiate`` imports whatever a ``_target_`` names, and calls it. Here a name is
looked up in a table of Detectron2's own parts, and nothing is imported for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    FPN,
    GeneralizedRCNN,
    MViT,
    PanopticFPN,
    ResNet,
    RetinaNet,
    SimpleFeaturePyramid,
    ViT,
)
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import RegNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.regnet import (
    ResBasicBlock,
    ResBottleneckBlock,
    ResStem,
    SimpleStem,
    VanillaBlock,
)
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    KRCNNConvDeconvUpsampleHead,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.utils.registry import _convert_target_to_string
from torch import nn
from torch.overrides import TorchFunctionMode

from .proposal_generator import InstrumentedRPN
from .roi_heads import (
    InstrumentedCascadeROIHeads,
    InstrumentedRes5ROIHeads,
    InstrumentedStandardROIHeads,
)

TARGET, PARTIAL, NAME = "_target_", "_partial_", "_name_"

#: The meta-architectures.
DETECTORS = (GeneralizedRCNN, PanopticFPN, RetinaNet, FCOS)


class _NumbersOnCpu(TorchFunctionMode):
    """On the meta device, let numbers be numbers that a constructor reads from ``linspace``."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "cpu"} if func is torch.linspace else kwargs))


def _vision_transformer(part: type[nn.Module], **arguments: Any) -> nn.Module:
    with _NumbersOnCpu():
        return part(**arguments)


# What a ``_target_`` may name, and what is called for it.
_PARTS: dict[Callable[..., Any], Callable[..., Any]] = {
    RPN: InstrumentedRPN,
    StandardROIHeads: InstrumentedStandardROIHeads,
    CascadeROIHeads: InstrumentedCascadeROIHeads,
    Res5ROIHeads: InstrumentedRes5ROIHeads,
    **{part: partial(_vision_transformer, part) for part in (ViT, MViT)},
    **{
        part: part
        for part in (
            *(BasicStem, FPN, LastLevelMaxPool, LastLevelP6P7, RegNet, ResNet),
            *(ResNet.make_default_stages, ResNet.make_stage, SimpleFeaturePyramid),
            *(DefaultAnchorGenerator, Box2BoxTransform, Box2BoxTransformLinear, Matcher, ROIPooler),
            *(StandardRPNHead, FastRCNNConvFCHead, FastRCNNOutputLayers, FCOSHead, RetinaNetHead),
            *(KRCNNConvDeconvUpsampleHead, MaskRCNNConvUpsampleHead, SemSegFPNHead, ShapeSpec),
        )
    },
}
# What an argument may name without that it is called here.
_NAMES = (
    *(BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock),
    *(ResBasicBlock, ResBottleneckBlock, ResStem, SimpleStem, VanillaBlock),
)
# What may be called later, with the arguments that are given here.
_PARTIALS = (nn.LayerNorm,)
# Arguments that mean nothing to a defender: the frequencies of classes in the training data.
_LEFT_OUT = ("use_fed_loss", "fed_loss_num_classes", "get_fed_loss_cls_weights")


class DescriptionError(ValueError):
    """A description names something that is not allowed."""


def arguments_of(description: str) -> dict[str, Any]:
    """The arguments of the detector that a description is of, its parts built.

    Args:
        description: JSON of a tree without interpolations.

    Raises:
        DescriptionError: it names something that is not allowed.
        Exception: what the parts raise that are built.
    """
    return _arguments(json.loads(description))


def detector_named(name: object) -> type[nn.Module] | None:
    """The stock meta-architecture of a name; None if there is none."""
    return _named(DETECTORS).get(name) if isinstance(name, str) else None


def check_names(tree: object) -> None:
    """Look up every name of a tree below its top, without calling anything.

    Raises:
        DescriptionError: one is not allowed.
    """
    if isinstance(tree, list):
        for value in tree:
            check_names(value)
    elif isinstance(tree, dict):
        _callable_of(tree)
        for value in tree.values():
            check_names(value)


def name_of(part: object) -> str:
    """What a LazyConfig calls a class or function."""
    return _convert_target_to_string(part)


def _arguments(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        str(key): _built(value)
        for key, value in tree.items()
        if key not in (TARGET, PARTIAL, *_LEFT_OUT)
    }


def _built(tree: object) -> Any:
    if isinstance(tree, list):
        return [_built(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    part = _callable_of(tree)
    if part is None:
        return {key: _built(value) for key, value in tree.items()}
    if NAME in tree:
        return part
    arguments = _arguments(tree)
    return partial(part, **arguments) if PARTIAL in tree else part(**arguments)


def _callable_of(tree: dict[str, Any]) -> Callable[..., Any] | None:
    """What a mapping stands for; None for a plain one."""
    for key in (NAME, TARGET):
        if key not in tree:
            continue
        name = tree[key]
        known = _NAMES if key == NAME else _PARTIALS if PARTIAL in tree else tuple(_PARTS)
        found = _named(known).get(name) if isinstance(name, str) else None
        if found is None or (key == NAME and len(tree) > 1):
            raise DescriptionError(
                f"it names {str(name)[:80]!r}, which is none of Detectron2's parts of detectors "
                "that may be built"
            )
        return _PARTS.get(found, found) if key == TARGET else found
    return None


@cache
def _named(parts: tuple[Any, ...]) -> dict[str, Any]:
    """By every name that Detectron2 writes for them."""
    return {
        name: part
        for part in parts
        for name in (f"{part.__module__}.{part.__qualname__}", name_of(part))
    }
