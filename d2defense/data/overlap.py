# SPDX-License-Identifier: Apache-2.0
"""Do two datasets share images?"""

from __future__ import annotations

import hashlib
from typing import Any

from detectron2.data.detection_utils import read_image

from .errors import DatasetError


def overlapping_images(
    records: list[dict[str, Any]], others: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    """Pairs of file names, one of each dataset, whose pixels are the same.

    File names, folders, metadata and lossless re-encoding do not matter.

    Args:
        records: Detectron2's standard dataset dicts.
        others: of the other dataset.

    Raises:
        DatasetError: an image cannot be read.
    """
    known = {_pixel_hash(record["file_name"]): record["file_name"] for record in records}
    hashes = ((other["file_name"], _pixel_hash(other["file_name"])) for other in others)
    return [(known[digest], name) for name, digest in hashes if digest in known]


def check_disjoint(
    name: str, records: list[dict[str, Any]], other_name: str, others: list[dict[str, Any]]
) -> None:
    """Make sure that no image of one dataset is in the other.

    Raises:
        DatasetError: one is; the message names both and an example.
    """
    pairs = overlapping_images(records, others)
    if pairs:
        raise DatasetError(
            f"{name} and {other_name} share {len(pairs)} images, {pairs[0][0]} for one: what is "
            "trained on says nothing when it is tested on"
        )


def _pixel_hash(path: str) -> str:
    try:
        image = read_image(path, format="RGB")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: image cannot be read: {error}") from None
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
