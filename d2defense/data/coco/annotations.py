# SPDX-License-Identifier: Apache-2.0
"""Checks of annotations: ids, references, crowds, masks, areas."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from .boxes import check_boxes
from .findings import Findings, plain_id
from .kinds import Kind
from .masks import check_keypoints, check_mask, mask_area
from .values import Id, as_float, known_id, plain_key

Record = dict[str, Any]
Label = Callable[[int], str]
# COCO's evaluation keeps the ids of matched annotations as doubles, in which 0 means no match.
_LARGEST_ID = 1 << 53
_CROWD_VALUES = {"0": 0, "1": 1}


def check_annotations(
    records: list[Record],
    images: list[Record],
    image_ids: dict[Id, Id],
    category_ids: dict[Id, Id],
    findings: Findings,
) -> None:
    """Check the annotations of a document, in place.

    Args:
        records: of the annotations.
        images: the checked images.
        image_ids: by the key of an image's id as it was, the id as it is now.
        category_ids: by the key of a category's id, the id.
        findings: gets what is wrong.
    """
    _drop_copies(records, findings)
    labels = [record.get("id") for record in records]

    def label(position: int) -> str:
        return plain_id(labels[position], position)

    _number(records, label, findings)
    for key, ids, unknown in (
        ("image_id", image_ids, Kind.UNKNOWN_IMAGE),
        ("category_id", category_ids, Kind.UNKNOWN_CATEGORY),
    ):
        _resolve(records, key, ids, unknown, label, findings)
    _check_flags(records, label, findings)
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    for position, record in enumerate(records):
        size = sizes.get(record["image_id"], (0, 0))
        for kind in (*check_mask(record, size), *check_keypoints(record)):
            findings.add(kind, label(position))
    empty = check_boxes(records, sizes, label, findings)
    _check_areas(records, empty, label, findings)
    if empty:
        records[:] = [r for position, r in enumerate(records) if position not in empty]
    _note_copies(records, findings)


def _drop_copies(records: list[Record], findings: Findings) -> None:
    """Keep one of annotations that are the same in every field, the id among them."""
    keys = [plain_key(record.get("id")) for record in records]
    counts = Counter(key for key in keys if key is not None)
    if len(counts) == len(records):
        return
    kept, seen = [], set()
    for position, (record, key) in enumerate(zip(records, keys, strict=True)):
        if counts[key] > 1:
            content = json.dumps(record, sort_keys=True)
            if content in seen:
                findings.add(Kind.ANNOTATION_TWICE, plain_id(record["id"], position))
                continue
            seen.add(content)
        kept.append(record)
    records[:] = kept


def _number(records: list[Record], label: Label, findings: Findings) -> None:
    """Give new ids to annotations whose id cannot be used; nothing refers to them by it."""
    used: set[int] = set()
    unusable = []
    for position, record in enumerate(records):
        key = record.get("id")
        if type(key) is not int:
            key = plain_key(key)
        if type(key) is not int or key == 0 or abs(key) > _LARGEST_ID:
            findings.add(Kind.ANNOTATION_ID, label(position))
            unusable.append(record)
        elif key in used:
            findings.add(Kind.ANNOTATION_ID_TWICE, label(position))
            unusable.append(record)
        else:
            used.add(key)
            record["id"] = key
    free = max(max(used, default=0), 0)
    for number, record in enumerate(unusable, free + 1):
        record["id"] = number


def _resolve(
    records: list[Record],
    key: str,
    ids: dict[Id, Id],
    unknown: Kind,
    label: Label,
    findings: Findings,
) -> None:
    """Replace references by the ids they mean; None for those that mean nothing."""
    for position, record in enumerate(records):
        value = record.get(key)
        if type(value) is int and ids.get(value) == value:
            continue
        found = record[key] = known_id(value, ids)
        if found is None:
            findings.add(unknown, f"{label(position)} of {plain_id(value, -1)}")
        elif type(found) is not type(value) and value not in ids:
            findings.add(Kind.NUMBER, f"{key} of annotation {label(position)}")


def _check_flags(records: list[Record], label: Label, findings: Findings) -> None:
    for position, record in enumerate(records):
        crowd = record.get("iscrowd")
        if type(crowd) is not int:
            if crowd is None or crowd == "":
                findings.add(Kind.CROWD, label(position))
                record["iscrowd"] = 0
            elif type(crowd) is str and crowd in _CROWD_VALUES:
                findings.add(Kind.NUMBER, f"iscrowd of annotation {label(position)}")
                record["iscrowd"] = _CROWD_VALUES[crowd]
            elif isinstance(crowd, bool | float):
                record["iscrowd"] = int(crowd) if crowd in (0, 1) else crowd
        if record["iscrowd"] not in (0, 1):
            findings.add(Kind.CROWD_VALUE, label(position))
        if "ignore" in record and record["ignore"] != 0:
            if record["ignore"]:
                findings.add(Kind.IGNORE, label(position))
            else:  # null, or empty text
                del record["ignore"]


def _check_areas(records: list[Record], empty: set[int], label: Label, findings: Findings) -> None:
    for position, record in enumerate(records):
        given = record.get("area")
        area = as_float(given)
        if area is not None and 0 < area < math.inf:
            if type(given) is str:
                findings.add(Kind.NUMBER, f"area of annotation {label(position)}")
                record["area"] = area
        elif position not in empty and type(record.get("bbox")) is list:
            findings.add(Kind.AREA, label(position))
            width, height = record["bbox"][2:4]
            record["area"] = mask_area(record.get("segmentation")) or float(width) * float(height)


def _note_copies(records: list[Record], findings: Findings) -> None:
    seen = set()
    for position, record in enumerate(records):
        box = record.get("bbox")
        if type(box) is not list:
            continue
        place = (record["image_id"], record["category_id"], *box)
        if place in seen:
            findings.add(Kind.OBJECT_TWICE, plain_id(record["id"], position))
        seen.add(place)
