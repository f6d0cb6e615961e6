# SPDX-License-Identifier: Apache-2.0
"""Checks of images and categories: ids, file names, sizes, class names."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from d2defense.data.image_files import image_size

from .findings import Findings, plain_id
from .kinds import Kind
from .names import ImageFolder, Place
from .values import Id, as_float, plain_key, whole_number

Record = dict[str, Any]


def _label(record: Record, position: int) -> str:
    return plain_id(record.get("id"), position)


def _keyed(records: list[Record], wrong: Kind, what: str, findings: Findings) -> list[Id | None]:
    """The key of each record's id; whole numbers that are written as fractions are replaced."""
    keys = []
    for position, record in enumerate(records):
        key = plain_key(record.get("id"))
        if key is None:
            findings.add(wrong, _label(record, position))
        elif type(record["id"]) is float:
            record["id"] = key
            findings.add(Kind.NUMBER, f"{what} {key}")
        keys.append(key)
    return keys


def check_images(records: list[Record], image_root: Path, findings: Findings) -> dict[Id, Id]:
    """Check the images of a document, in place.

    Args:
        records: of the images.
        image_root: folder of their files.
        findings: gets what is wrong.

    Returns:
        by the key of an image's id as it was, the id as it is now.
    """
    keys = _keyed(records, Kind.IMAGE_ID, "image", findings)
    ids = _numbered(keys, findings)
    folder = ImageFolder(str(image_root))
    kept: list[Record] = []
    first: dict[Id, Record] = {}
    files: dict[str, str] = {}
    for position, (record, key) in enumerate(zip(records, keys, strict=True)):
        if key is None:
            continue
        label = _label(record, position)
        record["id"] = ids[key]
        before = first.setdefault(record["id"], record)
        if before is not record and _names_the_same(record, before):
            findings.add(Kind.IMAGE_TWICE, label)
            continue
        if before is not record:
            findings.add(Kind.IMAGE_ID_TWICE, label)
        _check_file_name(record, folder, label, findings)
        _check_size(record, image_root, label, findings)
        name = record.get("file_name")
        if (
            isinstance(name, str)
            and before is record
            and files.setdefault(os.path.normpath(name), label) != label
        ):
            findings.add(Kind.FILE_TWICE, label)
        kept.append(record)
    records[:] = kept
    return ids


def _numbered(keys: list[Id | None], findings: Findings) -> dict[Id, Id]:
    """Ids by key: as they are if all are numbers or all text; else numbers for those of text."""
    ids: dict[Id, Id] = {key: key for key in keys if key is not None}
    numbers = {key for key in ids if isinstance(key, int)}
    if not numbers or len(numbers) == len(ids):
        return ids
    free = max(numbers) + 1
    for key in [key for key in ids if isinstance(key, str)]:
        number = whole_number(key)
        if number in numbers:
            findings.add(Kind.IMAGE_ID_CLASH, repr(key))
            continue
        if number is None:
            number = free
        numbers.add(number)
        free = max(free, number + 1)
        ids[key] = number
        findings.add(Kind.IMAGE_ID_TEXT, plain_id(key, 0))
    return ids


def _names_the_same(record: Record, before: Record) -> bool:
    return record.get("file_name") is not None and all(
        record.get(key) == before.get(key) for key in ("file_name", "width", "height")
    )


def _check_file_name(record: Record, folder: ImageFolder, label: str, findings: Findings) -> None:
    name = record.get("file_name")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        findings.add(Kind.FILE_NAME, label)
        return
    place, spelling = folder.find(name)
    if place is Place.RESPELLED:
        record["file_name"] = spelling
        findings.add(Kind.FILE_SPELLING, label)
    elif place is Place.OUTSIDE:
        findings.add(Kind.FILE_OUTSIDE, label)
    elif place is Place.AMBIGUOUS:
        findings.add(Kind.FILE_AMBIGUOUS, label)


def _check_size(record: Record, image_root: Path, label: str, findings: Findings) -> None:
    if type(record.get("width")) is type(record.get("height")) is int and (
        record["width"] > 0 and record["height"] > 0
    ):
        return
    sides = [as_float(record.get(key)) for key in ("width", "height")]
    if all(side is not None and side > 0 and side.is_integer() for side in sides):
        findings.add(Kind.NUMBER, f"size of image {label}")
        record["width"], record["height"] = map(int, sides)
        return
    findings.add(Kind.IMAGE_SIZE, label)
    # An image that cannot be read has no size; it is found out where images are read.
    size = image_size(image_root / str(record.get("file_name")))
    record["width"], record["height"] = size or (0, 0)


def check_categories(records: list[Record], findings: Findings) -> dict[Id, Id]:
    """Check the categories of a document, in place.

    Args:
        records: of the categories.
        findings: gets what is wrong.

    Returns:
        by the key of a category's id, the id.
    """
    keys = _keyed(records, Kind.CATEGORY_ID, "category", findings)
    ids: dict[Id, Id] = {}
    kept: list[Record] = []
    first: dict[Id, Record] = {}
    for position, (record, key) in enumerate(zip(records, keys, strict=True)):
        if key is None:
            continue
        label = _label(record, position)
        name = record.get("name")
        if isinstance(name, int | float) and not isinstance(name, bool):
            record["name"] = str(name)
        elif not isinstance(name, str) or not name.strip():
            record["name"] = str(key)
            findings.add(Kind.CATEGORY_NAME, label)
        before = first.setdefault(key, record)
        if before is not record and before["name"] == record["name"]:
            findings.add(Kind.CATEGORY_TWICE, label)
            continue
        if before is not record:
            findings.add(Kind.CATEGORY_ID_TWICE, label)
        ids[key] = key
        kept.append(record)
    records[:] = kept
    kinds = {type(key) for key in ids}
    names = Counter(record["name"] for record in kept)
    for record in kept:
        if len(kinds) > 1 and isinstance(record["id"], str):
            findings.add(Kind.CATEGORY_ID_MIXED, _label(record, 0))
        if names[record["name"]] > 1:
            findings.add(Kind.CATEGORY_NAME_TWICE, _label(record, 0))
    return ids


def note_parents(categories: list[Record], used: set[Id], findings: Findings) -> None:
    """Note the categories that only group others, as some tools export them.

    Args:
        categories: of a document.
        used: ids of the categories that have an annotation.
        findings: gets them.
    """
    parents = {
        record.get("supercategory")
        for record in categories
        if isinstance(record.get("supercategory"), str)
        and record["supercategory"] != record["name"]
    }
    for record in categories:
        if record["name"] in parents and record["id"] not in used:
            findings.add(Kind.CATEGORY_PARENT, _label(record, 0))
