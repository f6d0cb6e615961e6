# SPDX-License-Identifier: Apache-2.0
"""A page of annotated images, to see what a dataset looks like."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from PIL import Image

from d2defense.data.errors import DatasetError

_GAP = 4
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42

Colour = tuple[int, int, int]


def _class_colours(count: int) -> list[Colour]:
    """Bright colours, neighbours far apart on the colour circle."""
    hues = [(0.31 + 0.381966 * position) % 1.0 for position in range(count)]
    return [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(h, 0.55, 1.0)) for h in hues
    ]


def _draw_label(tile: np.ndarray, text: str, box: np.ndarray, colour: Colour) -> None:
    """Write ``text`` above the box, or wherever next to that the tile has room for all of it."""
    (width, height), below = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
    left = int(np.clip(box[0], 0, max(0, tile.shape[1] - width - 4)))
    top = int(np.clip(box[1] - height - below - 3, 0, tile.shape[0] - height - below - 3))
    corner = (left + width + 3, top + height + below + 2)
    cv2.rectangle(tile, (left, top), corner, (24, 24, 24), -1)
    origin = (left + 2, top + height + 2)
    cv2.putText(tile, text, origin, _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)


def _annotated(
    record: dict[str, Any], class_names: Sequence[str], colours: Sequence[Colour], side: int
) -> np.ndarray:
    """One image with boxes and class names, letterboxed to (side, side, 3), uint8 RGB."""
    try:
        image = read_image(record["file_name"], "RGB")
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{record['file_name']}: image cannot be read: {error}") from error
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    # Resized before drawing: lines and letters keep their size on the sheet.
    picture = cv2.resize(image, size, interpolation=interpolation)
    boxes = [
        np.array(BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)) * scale
        for a in record["annotations"]
    ]
    classes = [a["category_id"] for a in record["annotations"]]
    for box, label in zip(boxes, classes, strict=True):
        first, second = np.round(box[:2]).astype(int), np.round(box[2:]).astype(int) - 1
        cv2.rectangle(picture, first.tolist(), second.tolist(), colours[label], 2)
    for box, label in zip(boxes, classes, strict=True):
        _draw_label(picture, class_names[label], box, colours[label])
    tile = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    tile[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return tile


def contact_sheet(
    dataset_dicts: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    count: int = 15,
    columns: int = 5,
    side: int = 256,
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

    Raises:
        DatasetError: there is no image to draw, or one cannot be read.
    """
    chosen = dataset_dicts[:count]
    if not chosen:
        raise DatasetError("the dataset has no images to draw")
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    step = side + _GAP
    colours = _class_colours(len(class_names))
    sheet = np.full((rows * step - _GAP, columns * step - _GAP, 3), 255, np.uint8)
    for position, record in enumerate(chosen):
        top, left = position // columns * step, position % columns * step
        tile = _annotated(record, class_names, colours, side)
        sheet[top : top + side, left : left + side] = tile
    return sheet


def encode_png(picture: np.ndarray) -> bytes:
    """A uint8 RGB picture of shape (H, W, 3) as the contents of a PNG file, as small as can be."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
