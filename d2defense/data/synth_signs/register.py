# SPDX-License-Identifier: Apache-2.0
"""Make the splits known to Detectron2; the images are generated when they are first asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from d2defense.data.cache import ENVIRONMENT_VARIABLE, cache_dir
from d2defense.data.errors import DatasetError
from d2defense.data.synth_signs.generate import SplitFolder, generate_split, split_folder
from d2defense.data.synth_signs.shapes import CLASS_NAMES
from d2defense.data.synth_signs.splits import SPLITS, dataset_name, parse_dataset_name

REGISTERED_SIZES = (128, 256, 512)


def generate_registered(name: str, cache: Path | None = None) -> SplitFolder:
    """Generate the split that a name stands for, unless it is in the cache.

    Raises:
        DatasetError: not a name of this dataset, or the cache folder cannot be written to.
    """
    parsed = parse_dataset_name(name)
    if parsed is None:
        raise DatasetError(f"{name!r} is no split of synth_signs")
    try:
        return generate_split(*parsed, cache=cache)
    except OSError as error:
        raise DatasetError(
            f"{name}: cannot write to the cache folder {cache or cache_dir()}:"
            f" {error.strerror or error} (set {ENVIRONMENT_VARIABLE} to another folder)"
        ) from error


def _load(name: str, cache: Path) -> list[dict]:
    folder = generate_registered(name, cache)
    return load_coco_json(str(folder.json_file), str(folder.image_root), name)


def register_name(name: str) -> None:
    """Register one split at one size, for example ``synth_signs_val_320px``; safe to repeat.

    After a change of ``D2DEFENSE_CACHE`` the name is registered anew with the new folder.

    Raises:
        DatasetError: not a name of this dataset, or a size out of range.
    """
    parsed = parse_dataset_name(name)
    if parsed is None:
        raise DatasetError(f"{name!r} is no split of synth_signs")
    cache = cache_dir()
    folder = split_folder(*parsed, cache=cache)
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("json_file") == str(folder.json_file):
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load, name, cache))
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASS_NAMES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
        json_file=str(folder.json_file),
        image_root=str(folder.image_root),
        evaluator_type="coco",
    )


def register_synth_signs() -> None:
    """Register every split at 128 (the bare names), 256 and 512 pixels; safe to repeat."""
    for image_size in REGISTERED_SIZES:
        for split in SPLITS:
            register_name(dataset_name(split, image_size))
