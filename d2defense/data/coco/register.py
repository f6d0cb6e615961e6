# SPDX-License-Identifier: Apache-2.0
"""COCO-format data under a name of Detectron2's catalogue."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from d2defense.data.cache import ENVIRONMENT_VARIABLE, cache_dir
from d2defense.data.errors import DatasetError
from d2defense.files import write_text

from .check import check_document
from .document import read_document, without_collector
from .findings import Findings
from .kinds import Outcome


class FindingsError(DatasetError):
    """A dataset with errors; the message is about the first, ``findings`` has all."""

    def __init__(self, json_file: Path, findings: Findings) -> None:
        errors = findings.of(Outcome.ERROR)
        more = len(errors) - 1
        kinds = "kind" if more == 1 else "kinds"
        rest = f" (and {more} other {kinds}: `d2defense dataset` lists all)" if more else ""
        super().__init__(f"{json_file}: {errors[0]}{rest}")
        self.findings = findings


def register_coco_dataset(
    name: str, json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> Findings:
    """Check a dataset in COCO's format and register it with Detectron2.

    What can be put right without a guess is. Where something was, or where pycocotools could not
    read the file, the registered file is a corrected copy in the cache. Whether the image files can
    be read is not looked at (:mod:`d2defense.data.image_files`).

    Registering the same files under the same name again does nothing, unless they were changed.

    Args:
        name: the name that configs and commands will use.
        json_file: annotations in COCO's format.
        image_root: the folder that the annotations' file names are relative to.

    Returns:
        what was found.

    Raises:
        DatasetError: a file or folder is missing or cannot be read, the annotations are not in
            COCO's format, there are none, something is wrong that cannot be put right
            (:class:`FindingsError`), or the name belongs to another dataset already.
    """
    json_file, image_root = Path(json_file).absolute(), Path(image_root).absolute()
    source = _source(json_file, image_root)
    if name in DatasetCatalog:
        registered = MetadataCatalog.get(name).get("source", ())
        if registered == source:
            return MetadataCatalog.get(name).findings
        if registered[:2] != source[:2]:
            raise DatasetError(f"{name!r} is registered already, with other files than {json_file}")
        _forget(name)  # the file was changed
    with without_collector():
        document = read_document(json_file)
        if not image_root.is_dir():
            raise DatasetError(f"{image_root}: image folder does not exist")
        findings = check_document(document.content, image_root)
        if findings.of(Outcome.ERROR):
            raise FindingsError(json_file, findings)
        _require_a_file(json_file, image_root, document.content["images"])
        corrections = findings.of(Outcome.CORRECTED)
        used = json_file
        if corrections or not document.is_plain:
            used = _write_copy(json_file, document.content)
        categories = document.content["categories"]
        classes = [c["name"] for c in sorted(categories, key=lambda category: category["id"])]
        keypoints = [names for names in map(_keypoint_names, categories) if names]
        del document
    _register(name, used, image_root)
    MetadataCatalog.get(name).set(
        # Known at once, so that the classes can be asked for before the data is loaded.
        thing_classes=classes,
        category_keypoints=keypoints,
        source=source,
        findings=findings,
    )
    return findings


def leave_out_images(name: str, image_ids: Collection[Any]) -> None:
    """Register a dataset of :func:`register_coco_dataset` anew, without some of its images.

    Evaluation then does not miss them either.

    Args:
        name: of the dataset.
        image_ids: of the images.

    Raises:
        DatasetError: no image with an object is left.
    """
    metadata = MetadataCatalog.get(name)
    json_file, left_out = Path(metadata.json_file), set(image_ids)
    with without_collector():
        document = json.loads(json_file.read_bytes())
        for section, key in (("images", "id"), ("annotations", "image_id")):
            kept = [record for record in document[section] if record[key] not in left_out]
            if not kept:
                raise DatasetError(f"{name}: no image with an object is left")
            document[section] = kept
        used = _write_copy(Path(metadata.source[0]), document)
        del document
    kept_metadata = {
        key: metadata.get(key)
        for key in ("thing_classes", "category_keypoints", "source", "findings")
    }
    _forget(name)
    _register(name, used, Path(metadata.image_root))
    MetadataCatalog.get(name).set(**kept_metadata)


def _require_a_file(json_file: Path, image_root: Path, images: list[dict[str, Any]]) -> None:
    """Make sure that at least one image is there, else the folder is another one's.

    Raises:
        DatasetError: none is; the message says which folder would do, if one does.
    """
    if any((image_root / image["file_name"]).is_file() for image in images):
        return
    name = Path(images[0]["file_name"])
    line = f"{image_root}: holds none of the images that {json_file} lists, such as {name}"
    for folder in list(image_root.parents)[: len(name.parts)]:
        if (folder / name).is_file():
            raise DatasetError(f"{line}; {folder} does")
    if (image_root / name.name).is_file():
        raise DatasetError(f"{line}; it has {name.name}, without the folder {name.parent}")
    raise DatasetError(line)


def _keypoint_names(category: dict[str, Any]) -> tuple[str, ...]:
    names = category.get("keypoints")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _source(json_file: Path, image_root: Path) -> tuple[Any, ...]:
    """What a registered dataset was made from, its file as it was then."""
    try:
        status = json_file.stat()
    except OSError:
        return (str(json_file), str(image_root))
    return (str(json_file), str(image_root), status.st_size, status.st_mtime_ns, status.st_ino)


def _register(name: str, json_file: Path, image_root: Path) -> None:
    DatasetCatalog.register(name, partial(_load, str(json_file), str(image_root), name))
    MetadataCatalog.get(name).set(
        json_file=str(json_file), image_root=str(image_root), evaluator_type="coco"
    )


def _forget(name: str) -> None:
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _load(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    with without_collector():
        # The ids are for messages.
        return load_coco_json(json_file, image_root, name, extra_annotation_keys=["id"])


def _write_copy(json_file: Path, document: dict[str, Any]) -> Path:
    """Write a corrected document to the cache, under a name that follows from its content."""
    content = json.dumps(document)
    digest = hashlib.sha256(content.encode("ascii")).hexdigest()[:16]
    path = cache_dir() / "coco" / f"{json_file.stem[:64]}-{digest}.json"
    try:
        if not path.is_file():
            write_text(path, content)
    except OSError as error:
        raise DatasetError(
            f"{json_file}: cannot write a corrected copy to {path.parent}:"
            f" {error.strerror or error} (set {ENVIRONMENT_VARIABLE} to another folder)"
        ) from None
    return path
