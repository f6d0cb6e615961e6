# SPDX-License-Identifier: Apache-2.0
"""Write a split of the dataset to the cache: PNG images and annotations in COCO's format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from d2defense.data.cache import cache_dir, fill_once
from d2defense.data.synth_signs.scene import Scene, render_scene
from d2defense.data.synth_signs.shapes import CLASS_NAMES
from d2defense.data.synth_signs.splits import DEFAULT_IMAGE_SIZE, SPLITS, VERSION, check_image_size
from d2defense.files import write_text

ANNOTATIONS = "annotations.json"
IMAGES = "images"


@dataclass(frozen=True)
class SplitFolder:
    """Where one split lies.

    Attributes:
        root: the split's folder.
    """

    root: Path

    @property
    def json_file(self) -> Path:
        """The annotations in COCO's format."""
        return self.root / ANNOTATIONS

    @property
    def image_root(self) -> Path:
        """The folder that the annotations' file names are relative to."""
        return self.root / IMAGES


def split_folder(
    split: str,
    image_size: int = DEFAULT_IMAGE_SIZE,
    count: int | None = None,
    cache: Path | None = None,
) -> SplitFolder:
    """The folder of a split, generated or not.

    Args:
        split: ``train``, ``defender``, ``val`` or ``pool``.
        image_size: side of the images in pixels.
        count: number of images; by default the split's own.
        cache: cache folder; by default :func:`~d2defense.data.cache.cache_dir`.
    """
    name = f"{split}_{image_size}px"
    if count is not None and count != SPLITS[split].count:
        name += f"_first{count}"
    return SplitFolder((cache or cache_dir()) / "synth_signs" / f"v{VERSION}" / name)


def _image_record(image_id: int, file_name: str, image_size: int) -> dict:
    return {"id": image_id, "file_name": file_name, "width": image_size, "height": image_size}


def _annotation_records(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    records = []
    for offset, item in enumerate(scene.objects):
        x0, y0, x1, y1 = item.box.tolist()
        records.append(
            {
                "id": first_id + offset,
                "image_id": image_id,
                "category_id": item.class_index + 1,
                "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                "area": round(item.area, 3),
                "segmentation": [
                    [round(value, 2) for value in polygon.ravel().tolist()]
                    for polygon in item.polygons
                ],
                "iscrowd": 0,
            }
        )
    return records


def _encode_png(image: np.ndarray) -> bytes:
    ok, content = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 2])
    if not ok:
        raise OSError("OpenCV could not encode a PNG image")
    return content.tobytes()


def _write_split(folder: Path, split: str, image_size: int, count: int) -> None:
    target = SplitFolder(folder)
    target.image_root.mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    # disable=None: a bar on a terminal, nothing in a log file.
    for index in tqdm(range(count), f"synth_signs {split} {image_size}px", disable=None):
        scene = render_scene(VERSION, SPLITS[split].seed, index, image_size)
        file_name = f"{index:06d}.png"
        (target.image_root / file_name).write_bytes(_encode_png(scene.image))
        images.append(_image_record(index + 1, file_name, image_size))
        annotations += _annotation_records(scene, index + 1, len(annotations) + 1)
    document = {
        "info": {
            "description": f"synth_signs {split}, {image_size} pixels",
            "version": str(VERSION),
            "seed": SPLITS[split].seed,
        },
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": position + 1, "name": name, "supercategory": "sign"}
            for position, name in enumerate(CLASS_NAMES)
        ],
    }
    write_text(target.json_file, json.dumps(document, separators=(",", ":"), allow_nan=False))


def generate_split(
    split: str,
    image_size: int = DEFAULT_IMAGE_SIZE,
    count: int | None = None,
    cache: Path | None = None,
) -> SplitFolder:
    """Generate a split unless it is in the cache already.

    Args:
        split: ``train``, ``defender``, ``val`` or ``pool``.
        image_size: side of the square images in pixels, 64 to 1024.
        count: number of images, from the first on; by default the split's own.
        cache: cache folder; by default :func:`~d2defense.data.cache.cache_dir`.

    Returns:
        The folder, complete.

    Raises:
        DatasetError: unknown split or a size out of range.
        OSError: the cache folder cannot be written to.
    """
    check_image_size(split, image_size)
    expected = SPLITS[split].count if count is None else count
    folder = split_folder(split, image_size, count, cache)

    def is_complete(root: Path) -> bool:
        found = SplitFolder(root)
        return found.json_file.is_file() and (
            sum(path.suffix == ".png" for path in found.image_root.glob("*")) == expected
        )

    fill_once(
        folder.root, is_complete, lambda root: _write_split(root, split, image_size, expected)
    )
    return folder
