# SPDX-License-Identifier: Apache-2.0
"""Register COCO-format data of one's own, with one clear line for what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2defense.data.errors import DatasetError

_SECTIONS = ("images", "annotations", "categories")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox")


def _read(json_file: Path) -> dict[str, Any]:
    try:
        content = json_file.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{json_file}: annotation file does not exist") from error
    except OSError as error:
        raise DatasetError(f"{json_file}: cannot be read: {error.strerror}") from error
    try:
        document = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{json_file}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{json_file}: not in COCO's format: the document is no object")
    for section in _SECTIONS:
        records = document.get(section)
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise DatasetError(f"{json_file}: not in COCO's format: no list {section!r}")
        if not records:
            raise DatasetError(f"{json_file}: {section!r} is empty")
    return document


def _check_images(json_file: Path, image_root: Path, images: list[dict[str, Any]]) -> None:
    if not image_root.is_dir():
        raise DatasetError(f"{image_root}: image folder does not exist")
    missing = []
    for record in images:
        for key in ("id", "file_name", "width", "height"):
            if key not in record:
                raise DatasetError(f"{json_file}: image {record.get('id', '?')} has no {key!r}")
        path = image_root / record["file_name"]
        if not path.is_file():
            missing.append(path)
    if missing:
        others = f" (and {len(missing) - 1} others of {len(images)})" if len(missing) > 1 else ""
        raise DatasetError(f"{missing[0]}: image listed in {json_file} does not exist{others}")


def _check_annotations(json_file: Path, document: dict[str, Any]) -> None:
    image_ids = {record["id"] for record in document["images"]}
    category_ids = {record.get("id") for record in document["categories"]}
    seen = set()
    for record in document["annotations"]:
        where = f"{json_file}: annotation {record.get('id', '?')}"
        for key in _ANNOTATION_KEYS:
            if key not in record:
                raise DatasetError(f"{where} has no {key!r}")
        if record["id"] in seen:
            raise DatasetError(f"{where} is listed twice")
        seen.add(record["id"])
        if record["image_id"] not in image_ids:
            raise DatasetError(f"{where} names image {record['image_id']}, which is not listed")
        if record["category_id"] not in category_ids:
            raise DatasetError(
                f"{where} names category {record['category_id']}, which is not listed"
            )
        box = record["bbox"]
        if not (
            isinstance(box, list)
            and len(box) == 4
            and all(isinstance(value, int | float) for value in box)
        ):
            raise DatasetError(f"{where}: 'bbox' is not four numbers")


def register_coco_dataset(
    name: str, json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> None:
    """Check a dataset in COCO's format and register it with Detectron2.

    Registering the same files under the same name again does nothing.

    Args:
        name: the name that configs and commands will use.
        json_file: annotations in COCO's format.
        image_root: the folder that the annotations' file names are relative to.

    Raises:
        DatasetError: a file or folder is missing or cannot be read, the annotations are not in
            COCO's format, there are none, an image that they list does not exist, or the name
            belongs to another dataset already.
    """
    json_file, image_root = Path(json_file).absolute(), Path(image_root).absolute()
    document = _read(json_file)
    _check_images(json_file, image_root, document["images"])
    _check_annotations(json_file, document)
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if (metadata.get("json_file"), metadata.get("image_root")) != (
            str(json_file),
            str(image_root),
        ):
            raise DatasetError(f"{name!r} is registered already, with other files than {json_file}")
        return
    classes = sorted(document["categories"], key=lambda category: category["id"])
    register_coco_instances(
        name,
        # Known at once, so that the classes can be asked for before the data is loaded.
        {"thing_classes": [category["name"] for category in classes]},
        str(json_file),
        str(image_root),
    )
