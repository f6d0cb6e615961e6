# SPDX-License-Identifier: Apache-2.0
"""Whether a detector can learn by what a scanned config says of training.

Twin and repair are trained by the suspect's own losses. Whoever made it could see to it that
nothing is learnt, or nothing of classes, and a twin that is a copy would hide every backdoor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from detectron2.config import CfgNode

# Least and most that a key may be, by its last name, whatever detector it is of. The model zoo's
# configs lie well inside.
_BOUNDS = {
    "LOSS_WEIGHT": (0.1, 20.0),
    "BBOX_REG_LOSS_WEIGHT": (0.1, 20.0),
    "HEAD_WEIGHTS": (0.1, 20.0),
    "FOCUS": (0.1, 1.0),
    "IOU_THRESHOLDS": (0.1, 0.9),
    "IOUS": (0.1, 0.9),
    "BATCH_SIZE_PER_IMAGE": (16, 65_536),
    "POSITIVE_FRACTION": (0.1, 0.9),
    "PRE_NMS_TOPK_TRAIN": (16, 50_000),
    "POST_NMS_TOPK_TRAIN": (16, 20_000),
    "FOCAL_LOSS_ALPHA": (0.05, 0.95),
    "FOCAL_LOSS_GAMMA": (0.0, 5.0),
    "CENTER_SAMPLING_RADIUS": (0.5, 5.0),
}
# From the least overlap to the largest: background, perhaps nothing, object.
_LABELS = {"IOU_LABELS": ([0, 1], [0, -1, 1])}
# What a LazyConfig calls the same.
_LABELS["LABELS"] = _LABELS["IOU_LABELS"]
_BOUNDS["THRESHOLDS"] = _BOUNDS["IOU_THRESHOLDS"]
_KNOWN = _BOUNDS.keys() | _LABELS.keys()


def find_untrainable(cfg: CfgNode) -> str | None:
    """What of ``cfg`` would keep a fine-tuning from learning; None if nothing does.

    Args:
        cfg: of a checkpoint; ``MODEL.DESCRIPTION`` counts, too.
    """
    described = json.loads(cfg.MODEL.DESCRIPTION) if cfg.MODEL.DESCRIPTION else {}
    for path, value in (*_leaves("MODEL", cfg.MODEL), *_leaves("model", described)):
        # A weight may be a table of several.
        name = next((part for part in reversed(path.upper().split(".")) if part in _KNOWN), None)
        if name is None or value is None:
            continue
        values = list(value) if isinstance(value, list | tuple) else [value]
        if name in _LABELS:
            if values not in _LABELS[name]:
                return f"{path} is {values}: a fine-tuning would not learn what is an object"
            continue
        low, high = _BOUNDS[name]
        for each in values:
            if isinstance(each, int | float) and not low <= each <= high:
                return (
                    f"{path} is {each}: a fine-tuning would hardly learn by it ({low} to {high} is "
                    "allowed)"
                )
    return None


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _leaves(f"{path}.{name}", child)
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        for child in value:
            yield from _leaves(path, child)
    else:
        yield path, value
