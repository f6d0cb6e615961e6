# SPDX-License-Identifier: Apache-2.0
"""Checks of boxes: four finite numbers each, of some size, in their image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from .findings import Findings
from .kinds import Kind
from .masks import mask_box
from .values import Id, as_float

Record = dict[str, Any]
# Detectron2's training drops boxes that are not larger (``filter_empty_instances``).
_SMALLEST_SIDE = 1e-5
# Tools round coordinates to the next pixel.
_ROUNDING = 1.0
# Boxes are taken for pairs of corners only where there are this many of them, and this share of
# them cannot be anything else.
_CORNERS_FROM, _CORNERS_SHARE = 8, 0.1


def check_boxes(
    records: list[Record],
    sizes: Mapping[Id, tuple[int, int]],
    label: Callable[[int], str],
    findings: Findings,
) -> set[int]:
    """Check the boxes of annotations whose masks are checked, in place.

    Args:
        records: of the annotations; ``image_id`` None where the image is not known.
        sizes: (width, height) of each image, zeros where it cannot be read.
        label: an annotation's name in messages, by its position.
        findings: gets what is wrong.

    Returns:
        positions of the annotations whose boxes have no size.
    """
    boxes, positions = _as_array(records, label, findings)
    width, height = boxes[:, 2:].T

    def report(kind: Kind, where: np.ndarray) -> None:
        for position in positions[where].tolist():
            findings.add(kind, label(position))

    finite = np.isfinite(boxes).all(axis=1)
    report(Kind.BOX_NOT_FINITE, ~finite)
    negative = finite & ((width < 0) | (height < 0))
    report(Kind.BOX_NEGATIVE, negative)
    empty = finite & ~negative & (np.minimum(width, height) <= _SMALLEST_SIDE)
    report(Kind.BOX_EMPTY, empty)
    usable = finite & ~negative & ~empty
    of_images = [sizes.get(records[position]["image_id"]) for position in positions.tolist()]
    # No box reaches beyond an image whose size is not known.
    limits = np.array([size if size and all(size) else (np.inf, np.inf) for size in of_images])
    limits = limits.reshape(-1, 2)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    cut = np.clip(corners, 0, np.tile(limits, 2))
    beyond = usable & (np.abs(corners - cut).max(axis=1, initial=0) > _ROUNDING)
    outside = beyond & ((cut[:, 2:] - cut[:, :2]).min(axis=1) <= _SMALLEST_SIDE)
    if usable.any() and corners[usable].max() <= 1 and limits[usable].min() > 2:
        report(Kind.BOX_RELATIVE, usable)
    elif _are_corners(boxes[usable], limits[usable], beyond.sum()):
        report(Kind.BOX_CORNERS, beyond)
    else:
        report(Kind.BOX_OUTSIDE, outside)
        report(Kind.BOX_CUT, beyond & ~outside)
        for index in np.flatnonzero(beyond & ~outside).tolist():
            left, top, right, bottom = cut[index].tolist()
            records[positions[index]]["bbox"] = [left, top, right - left, bottom - top]
    return set(positions[empty].tolist())


def _are_corners(boxes: np.ndarray, limits: np.ndarray, beyond: int) -> bool:
    """Whether boxes make sense as two corners, and many do not as corner, width and height."""
    if len(boxes) < _CORNERS_FROM or beyond < _CORNERS_SHARE * len(boxes):
        return False
    ordered = (boxes[:, 2:] > boxes[:, :2]).all()
    return bool(ordered and (boxes[:, 2:] <= limits + _ROUNDING).all())


def _as_array(
    records: list[Record], label: Callable[[int], str], findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes as float64 (N, 4), and the positions of their records."""
    raw = [record.get("bbox") for record in records]
    if (
        set(map(type, raw)) == {list}
        and set(map(len, raw)) == {4}
        and set(map(type, chain.from_iterable(raw))) <= {int, float}
    ):
        with suppress(OverflowError):
            return np.array(raw, dtype=np.float64), np.arange(len(raw))
    found = {
        position: box
        for position, record in enumerate(records)
        if (box := _one_box(record, label(position), findings)) is not None
    }
    boxes = np.array(list(found.values()), dtype=np.float64).reshape(-1, 4)
    return boxes, np.array(list(found), dtype=np.int64)


def _one_box(record: Record, label: str, findings: Findings) -> list[float] | None:
    box = record.get("bbox")
    if box is None or box == []:
        found = mask_box(record.get("segmentation"))
        findings.add(Kind.BOX if found is None else Kind.BOX_OF_MASK, label)
        record["bbox"] = found
        return found
    numbers = [as_float(value) for value in box] if type(box) is list else []
    if len(numbers) != 4 or None in numbers:
        findings.add(Kind.BOX_TYPE, label)
        return None
    if any(type(value) is str for value in box):
        findings.add(Kind.NUMBER, f"box of annotation {label}")
        record["bbox"] = numbers
    return numbers
