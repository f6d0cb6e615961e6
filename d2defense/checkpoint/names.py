# SPDX-License-Identifier: Apache-2.0
"""Which names a scanned config may use to choose parts of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from fvcore.common.registry import Registry

_REGISTRIES: dict[str, Registry] = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
# Other code may have registered classes for purposes of its own in the same process.
_TRUSTED_MODULES = ("detectron2.modeling.", "d2defense.")

_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_POOLERS = ("ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")
_REGRESSION_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "MODEL.SEM_SEG_HEAD.NORM": _NORMS,
    "MODEL.RETINANET.NORM": _NORMS,
    "MODEL.FCOS.NORM": _NORMS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _REGRESSION_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _REGRESSION_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _REGRESSION_LOSSES,
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def find_unknown_name(cfg: CfgNode) -> str | None:
    """What is wrong with the first name in ``cfg`` that is not allowed; None if all are.

    Allowed are, at each key, the entries of the registry that come from Detectron2's model library
    or from d2defense, and the strings that Detectron2 knows.
    """
    for key, value, allowed in _names(cfg):
        if value not in allowed:
            return f"{key} is {value[:80]!r}; known are {', '.join(filter(None, allowed))}"
    device = str(cfg.MODEL.DEVICE)
    if not _DEVICE.fullmatch(device):
        return (
            f"MODEL.DEVICE is {device[:80]!r}; known are cpu and cuda: name one of these in its "
            "place (--device)"
        )
    return None


def _names(cfg: CfgNode) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for key, registry in _REGISTRIES.items():
        allowed = [
            name
            for name, entry in registry
            if getattr(entry, "__module__", "").startswith(_TRUSTED_MODULES)
        ]
        # Heads that a detector does not have are named "".
        yield key, str(value_at(cfg, key)), ("", *sorted(allowed))
    for key, choices in _CHOICES.items():
        yield key, str(value_at(cfg, key)), choices


def value_at(cfg: CfgNode, key: str) -> object:
    """The value of a dotted key."""
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node
