# SPDX-License-Identifier: Apache-2.0
"""A page of annotated images, to see what a dataset looks like."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

_GAP = 4


def _annotated(record: dict[str, Any], class_names: Sequence[str], side: int) -> np.ndarray:
    """One image with boxes and class names, letterboxed to (side, side, 3), uint8 RGB."""
    image = read_image(record["file_name"], "RGB")
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    # Enlarged before drawing: lines and letters keep their size on the sheet.
    picture = cv2.resize(image, size, interpolation=interpolation)
    annotations = record["annotations"]
    if annotations:
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        )
        classes = [a["category_id"] for a in annotations]
        palette = colormap(rgb=True, maximum=1)
        drawn = Visualizer(picture).overlay_instances(
            boxes=boxes * scale,
            labels=[class_names[c] for c in classes],
            assigned_colors=[palette[c % len(palette)] for c in classes],
            alpha=0.9,
        )
        picture = drawn.get_image()
    tile = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    tile[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return tile


def contact_sheet(
    dataset_dicts: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    count: int = 18,
    columns: int = 6,
    side: int = 288,
) -> np.ndarray:
    """Draw the first images of a dataset, with their boxes and class names, in a grid.

    Args:
        dataset_dicts: dicts in Detectron2's standard format.
        class_names: names by contiguous class id.
        count: number of images, fewer if the dataset has fewer.
        columns: number of images in a row.
        side: side of one image's square on the sheet, in pixels.

    Returns:
        uint8 array of shape (H, W, 3), RGB.
    """
    chosen = dataset_dicts[:count]
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    step = side + _GAP
    sheet = np.full((rows * step - _GAP, columns * step - _GAP, 3), 255, np.uint8)
    for position, record in enumerate(chosen):
        top, left = position // columns * step, position % columns * step
        sheet[top : top + side, left : left + side] = _annotated(record, class_names, side)
    return sheet


def encode_sheet(sheet: np.ndarray) -> bytes:
    """A contact sheet as a PNG file of 256 colours, a third of the size of one in full colour."""
    buffer = BytesIO()
    Image.fromarray(sheet).quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
