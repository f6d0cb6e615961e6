# SPDX-License-Identifier: Apache-2.0
"""Set images of a COCO-format dataset aside as the defender's set."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from d2defense.files import write_json

from .errors import DatasetError

DEFENDER_FILE, REST_FILE = "defender.json", "rest.json"


def split_coco(
    json_file: Path, output_dir: Path, defender_images: int, seed: int
) -> tuple[Path, Path]:
    """Write a dataset's annotations as two files without a common image.

    Images with an object are drawn for the defender's set; the rest keeps all others. Categories
    and everything else in the document go to both.

    Args:
        json_file: annotations in COCO's format (:func:`register_coco_dataset` checks them).
        output_dir: gets ``defender.json`` and ``rest.json``.
        defender_images: size of the defender's set.
        seed: of the draw.

    Returns:
        paths of the two files.

    Raises:
        DatasetError: fewer images show an object than are asked for.
        OSError: a file cannot be read or written.
    """
    document = json.loads(Path(json_file).read_bytes())
    annotated = sorted({annotation["image_id"] for annotation in document["annotations"]})
    if not 1 <= defender_images < len(annotated):
        raise DatasetError(
            f"{json_file}: {len(annotated)} images show an object; {defender_images} of them "
            "cannot be set aside"
        )
    drawn = np.random.default_rng(seed).choice(len(annotated), defender_images, replace=False)
    chosen = {annotated[index] for index in drawn}
    return (
        write_json(output_dir / DEFENDER_FILE, _part(document, chosen, inside=True)),
        write_json(output_dir / REST_FILE, _part(document, chosen, inside=False)),
    )


def write_part(json_file: Path, output: Path, image_ids: Collection[Any]) -> Path:
    """Write the annotations of some images of a COCO-format dataset, and return the file.

    Raises:
        OSError: a file cannot be read or written.
    """
    document = json.loads(Path(json_file).read_bytes())
    return write_json(output, _part(document, set(image_ids), inside=True))


def _part(document: dict[str, Any], chosen: set[Any], inside: bool) -> dict[str, Any]:
    return document | {
        "images": [i for i in document["images"] if (i["id"] in chosen) == inside],
        "annotations": [a for a in document["annotations"] if (a["image_id"] in chosen) == inside],
    }
