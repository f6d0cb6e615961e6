# SPDX-License-Identifier: Apache-2.0
"""The objects of an image that detectors are measured on."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import BoxMode
from torch import Tensor


def bears_trigger(annotation: dict[str, Any]) -> bool:
    """Whether an object of this annotation can bear a trigger: it is one object, not a crowd."""
    return not annotation.get("iscrowd", 0)


def annotated_objects(record: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Boxes and categories of the objects on an image that can bear a trigger; crowds cannot.

    Args:
        record: one of Detectron2's standard dataset dicts.

    Returns:
        float32 Tensor of shape (M, 4), XYXY in pixels of the image file, and int64 Tensor of shape
        (M,), the ``category_id`` of each.
    """
    objects = [a for a in record.get("annotations", ()) if bears_trigger(a)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
    )


def at_input_size(boxes: Tensor, mapped: dict[str, Any]) -> Tensor:
    """Boxes in pixels of the network's input.

    Args:
        boxes: Tensor of shape (M, 4), XYXY in pixels of the image file.
        mapped: the image as ``DatasetMapper`` gives it: ``image`` of shape (3, H, W), and the
            ``height`` and ``width`` of the file.
    """
    height, width = mapped["image"].shape[1:]
    return boxes * torch.tensor([width / mapped["width"], height / mapped["height"]]).repeat(2)
