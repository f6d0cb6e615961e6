# SPDX-License-Identifier: Apache-2.0
"""Clean labelled images, as the detector will see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from torch import Tensor

from d2defense.attacks import bears_trigger, image_seed


@dataclass(frozen=True)
class CleanImage:
    """One image at the network's input size, with its objects.

    Attributes:
        file_name: where it was read from.
        image: Tensor of shape (3, H, W), values 0..255, channels in ``INPUT.FORMAT``.
        boxes: Tensor of shape (M, 4), XYXY in pixels of ``image``; crowds left out.
        classes: int64 Tensor of shape (M,).
        seed: for the random patterns of triggers.
    """

    file_name: str
    image: Tensor
    boxes: Tensor
    classes: Tensor
    seed: int


def sample_records(
    records: list[dict[str, Any]], max_images: int, seed: int
) -> list[dict[str, Any]]:
    """At most ``max_images`` of the records that show an object, drawn by seed, in dataset order.

    Args:
        records: Detectron2's standard dataset dicts.
        max_images: 0 for all of them.
        seed: of the draw.
    """
    records = [r for r in records if any(bears_trigger(a) for a in r.get("annotations", ()))]
    if not max_images or len(records) <= max_images:
        return records
    chosen = np.random.default_rng(seed).choice(len(records), size=max_images, replace=False)
    return [records[index] for index in sorted(chosen)]


def load_clean_images(records: list[dict[str, Any]], cfg: CfgNode) -> list[CleanImage]:
    """Read and resize images as stock inference of ``cfg`` does.

    Args:
        records: Detectron2's standard dataset dicts with annotations.
        cfg: the detector's configuration (``INPUT.*_TEST``, ``INPUT.FORMAT``).
    """
    cfg = cfg.clone()
    cfg.defrost()
    # Only pixels are read, and the mapper would ask the training data for its keypoints.
    cfg.MODEL.KEYPOINT_ON = False
    mapper = DatasetMapper(cfg, is_train=False)
    return [_load(record, mapper) for record in records]


def _load(record: dict[str, Any], mapper: DatasetMapper) -> CleanImage:
    objects = [a for a in record["annotations"] if bears_trigger(a)]
    boxes = torch.tensor(
        [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects],
        dtype=torch.float32,
    ).reshape(-1, 4)
    mapped = mapper(record)
    image = mapped["image"]
    height, width = image.shape[1:]
    scale = torch.tensor([width / mapped["width"], height / mapped["height"]]).repeat(2)
    return CleanImage(
        file_name=record["file_name"],
        image=image,
        boxes=boxes * scale,
        classes=torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
        seed=image_seed(record["file_name"]),
    )
