# SPDX-License-Identifier: Apache-2.0
"""How large a detector a scanned config may describe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode

#: Highest magnitude of an integer, and number of items of a list, at keys not named below.
MAX_INTEGER = 65_536
MAX_LIST = 1000
MAX_ANCHORS = 1000
MAX_TEXT = 1000

# The largest published detectors stay well below each: ResNet-152, 1203 classes (LVIS), 2000
# proposals, inputs of 1333 pixels (2048 with test-time augmentation).
_MAX_AT = {
    "INPUT.MIN_SIZE_TEST": 4096,
    "INPUT.MAX_SIZE_TEST": 8192,
    "INPUT.MIN_SIZE_TRAIN": 8192,
    "INPUT.MAX_SIZE_TRAIN": 8192,
    "TEST.DETECTIONS_PER_IMAGE": 10_000,
    "MODEL.ROI_HEADS.NUM_CLASSES": 100_000,
    "MODEL.RETINANET.NUM_CLASSES": 100_000,
    "MODEL.FCOS.NUM_CLASSES": 100_000,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 10_000,
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 1000,
    "MODEL.RESNETS.DEPTH": 1000,
    "MODEL.TINY_RESNET.BLOCKS": 100,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 32,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 64,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 64,
    "MODEL.RETINANET.NUM_CONVS": 64,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 50_000,
    "MODEL.FCOS.NUM_CONVS": 64,
    "MODEL.FCOS.TOPK_CANDIDATES_TEST": 50_000,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 64,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 64,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 64,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 32,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 32,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50_000,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50_000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20_000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20_000,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 10**9,
}
# Read when the model is built or run; the others are replaced or not used by a scan.
_NODES = ("MODEL", "INPUT", "TEST")


@dataclass(frozen=True)
class SizeLimits:
    """How large a model may get.

    Attributes:
        parameters: elements of all parameters and buffers.
        activation_bytes: outputs of all layers of backbone and heads for one image.
    """

    parameters: int = 2_000_000_000
    activation_bytes: int = 64 << 30


DEFAULT_LIMITS = SizeLimits()


def find_excess(cfg: CfgNode) -> str | None:
    """What is too large in ``cfg`` to build a model from it; None if nothing is.

    Arithmetic on the keys alone, so it takes no time whatever they ask for.
    """
    for node in _NODES:
        for key, value in _leaves(node, cfg[node]):
            limit = _MAX_AT.get(key, MAX_INTEGER)
            if isinstance(value, list | tuple) and len(value) > MAX_LIST:
                return f"{key} has {len(value)} items; at most {MAX_LIST} are allowed"
            if isinstance(value, str) and len(value) > MAX_TEXT:
                return f"{key} has {len(value)} characters; at most {MAX_TEXT} are allowed"
            if isinstance(value, float) and not math.isfinite(value):
                return f"{key} is {value}"
            if isinstance(value, int) and abs(value) > limit:
                return f"{key} is {_short(value)}; at most {limit} is allowed"
    return _anchor_excess(cfg)


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, CfgNode):
        for name, child in value.items():
            yield from _leaves(f"{key}.{name}", child)
        return
    yield key, value
    if isinstance(value, list | tuple):
        for child in value:
            yield from _leaves(key, child)


def _anchor_excess(cfg: CfgNode) -> str | None:
    node = cfg.MODEL.ANCHOR_GENERATOR
    longest = [
        max((len(level) if isinstance(level, list | tuple) else 1 for level in levels), default=0)
        for levels in (node.SIZES, node.ASPECT_RATIOS)
    ]
    if math.prod(longest) > MAX_ANCHORS:
        return (
            f"MODEL.ANCHOR_GENERATOR asks for {math.prod(longest)} anchors at each place; at most "
            f"{MAX_ANCHORS} are allowed"
        )
    return None


def _short(value: int) -> str:
    # Python refuses to print integers of more than some thousand digits.
    return str(value) if value.bit_length() < 200 else f"an integer of {value.bit_length()} bits"
