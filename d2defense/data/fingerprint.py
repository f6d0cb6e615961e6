# SPDX-License-Identifier: Apache-2.0
"""Tell two datasets apart by what is in them, whatever their names and folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from d2defense.data.errors import DatasetError

_ANNOTATION_KEYS = ("category_id", "bbox", "bbox_mode", "iscrowd", "segmentation", "keypoints")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):  # compressed run-length masks
        return value.decode("ascii")
    raise TypeError(f"cannot fingerprint a value of type {type(value).__name__}")


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=_plain).encode()


def _record_digest(record: dict[str, Any]) -> str:
    path = Path(record["file_name"])
    try:
        with open(path, "rb") as stream:
            image = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path}: image cannot be read: {error.strerror}") from error
    annotations = sorted(
        _canonical({key: item[key] for key in _ANNOTATION_KEYS if key in item}).decode()
        for item in record.get("annotations", ())
    )
    return hashlib.sha256(_canonical([image, annotations])).hexdigest()


def dataset_fingerprint(dataset_dicts: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over the bytes of all image files and all annotations.

    The order of images and of annotations, file names and ids do not matter.

    Args:
        dataset_dicts: dicts in Detectron2's standard format, with ``file_name`` and
            ``annotations``.

    Returns:
        64 hexadecimal digits.

    Raises:
        DatasetError: an image file cannot be read.
    """
    digests = sorted(map(_record_digest, dataset_dicts))
    return hashlib.sha256(_canonical(digests)).hexdigest()
