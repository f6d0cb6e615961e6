# SPDX-License-Identifier: Apache-2.0
"""Masks and keypoints of annotations: what Detectron2 and pycocotools could not take, or drop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .kinds import Kind
from .values import is_number

_NUMBERS = {int, float}
# Three points.
_MIN_COORDINATES = 6


def check_mask(record: dict[str, Any], size: tuple[int, int]) -> Sequence[Kind]:
    """Check the ``segmentation`` of an annotation, in place.

    What is no mask is removed: Detectron2 drops the whole object for it, without a word, also where
    it needs no masks; a detector that learns masks is told later that there is none.

    Args:
        record: the annotation.
        size: (width, height) of its image.

    Returns:
        what is wrong.
    """
    mask = record.get("segmentation")
    if not mask:
        return ()
    if type(mask) is list:
        return _check_polygons(record, mask)
    if type(mask) is dict and _is_run_length(mask, size):
        return ()
    del record["segmentation"]
    return (Kind.MASK,)


def _check_polygons(record: dict[str, Any], mask: list[Any]) -> Sequence[Kind]:
    found = []
    if all(map(is_number, mask)):
        found.append(Kind.POLYGON_FLAT)
        mask = record["segmentation"] = [mask]
    kept = []
    for polygon in mask:
        if type(polygon) is not list or not _are_numbers(polygon):
            del record["segmentation"]
            return (*found, Kind.MASK)
        if len(polygon) % 2 == 0 and len(polygon) >= _MIN_COORDINATES:
            kept.append(polygon)
    if len(kept) < len(mask):
        found.append(Kind.POLYGON_SHORT)
        record["segmentation"] = kept
    return found


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers."""
    try:
        return set(map(type, values)) <= _NUMBERS and math.isfinite(sum(values))
    except OverflowError:  # beyond what a float holds
        return False


def _is_run_length(mask: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether a mask is run-length code, compressed or not, of an image of this size."""
    rows_columns = mask.get("size")
    if (
        type(rows_columns) is not list
        or [type(side) for side in rows_columns] != [int, int]
        or rows_columns != [size[1], size[0]]
    ):
        return False
    runs = run_lengths(mask.get("counts"))
    return bool(runs) and min(runs) >= 0 and sum(runs) == rows_columns[0] * rows_columns[1]


def run_lengths(counts: Any) -> list[int]:
    """Lengths of the runs of a run-length mask, from a list or from COCO's text.

    The text is that of ``rleToString`` of COCO's API: five bits a character and a sixth that says
    that the number goes on, the first bits lowest; from the fourth number on, the difference to
    the number two before.

    Returns:
        the lengths, of zeros and of ones in turn; empty for what is none.
    """
    if type(counts) is list:
        return counts if set(map(type, counts)) == {int} else []
    if type(counts) is not str:
        return []
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return [] if shift else runs


def mask_area(mask: Any) -> float:
    """Area of a checked mask in pixels: that of its polygons, or its pixels; 0 if there is none.

    As Detectron2 has it (``PolygonMasks.area``), parts of an object are taken not to overlap.
    """
    if not mask:
        return 0.0
    if isinstance(mask, dict):
        return float(sum(run_lengths(mask["counts"])[1::2]))
    return sum(map(_polygon_area, mask))


def _polygon_area(polygon: Sequence[float]) -> float:
    x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
    return 0.5 * float(np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def mask_box(mask: Any) -> list[float] | None:
    """The box around a checked mask, XYWH in pixels; None if there is none."""
    if not mask:
        return None
    if isinstance(mask, dict):
        runs = run_lengths(mask["counts"])
        inside = np.flatnonzero(np.repeat(np.arange(len(runs)) % 2, runs))
        if not len(inside):
            return None
        x, y = np.divmod(inside, mask["size"][0])
        low, high = (x.min(), y.min()), (x.max() + 1, y.max() + 1)
    else:
        points = np.concatenate([np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in mask])
        low, high = points.min(0), points.max(0)
    return [float(value) for value in (*low, high[0] - low[0], high[1] - low[1])]


def check_keypoints(record: dict[str, Any]) -> Sequence[Kind]:
    """Check the ``keypoints`` of an annotation, in place; what is none is removed.

    Returns:
        what is wrong.
    """
    keypoints = record.get("keypoints")
    if not keypoints:
        return ()
    if type(keypoints) is not list or len(keypoints) % 3 or not _are_numbers(keypoints):
        del record["keypoints"]
        return (Kind.KEYPOINTS,)
    if type(record.get("num_keypoints")) is int:
        return ()
    record["num_keypoints"] = sum(visibility > 0 for visibility in keypoints[2::3])
    return (Kind.KEYPOINT_COUNT,)
