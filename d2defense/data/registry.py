# SPDX-License-Identifier: Apache-2.0
"""Look datasets up by the names that configs and commands give."""

from __future__ import annotations

import difflib
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2defense.data.errors import DatasetError
from d2defense.data.synth_signs.register import generate_registered, register_name
from d2defense.data.synth_signs.splits import parse_dataset_name
from d2defense.text import shorten


def _unknown(name: str) -> DatasetError:
    known = DatasetCatalog.list()
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    close = close or sorted(n for n in known if n.startswith("synth_signs") and "px" not in n)
    return DatasetError(
        f"unknown dataset {name!r}; registered names close to it: {', '.join(close)}"
    )


def ensure_dataset(name: str) -> None:
    """Make sure that ``name`` is registered with Detectron2 and that its files are there.

    Splits of ``synth_signs`` are registered at any size from 64 to 1024 pixels
    (``synth_signs_val_320px``) and generated. Of any other dataset registered with a COCO file,
    it is checked that the file exists.

    Raises:
        DatasetError: unknown name, a size out of range, files that are missing or cannot be
            written.
    """
    if parse_dataset_name(name) is not None:
        register_name(name)
        generate_registered(name)
        return
    if name not in DatasetCatalog:
        raise _unknown(name)
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file is not None and not Path(json_file).is_file():
        raise DatasetError(f"{name}: annotation file {json_file} does not exist")


def load_dataset(name: str) -> list[dict]:
    """Dataset dicts in Detectron2's standard format, of a dataset that has annotations.

    Args:
        name: a registered name, or a split of ``synth_signs`` at any size.

    Raises:
        DatasetError: as :func:`ensure_dataset`; or the dataset cannot be loaded, has no images
            or has no annotations.
    """
    ensure_dataset(name)
    try:
        dicts = DatasetCatalog.get(name)
    except Exception as error:  # a loader of anyone's, on files of anyone's
        reason = shorten(error, 300) or type(error).__name__
        raise DatasetError(f"{name}: cannot be loaded: {reason}") from error
    if not dicts:
        raise DatasetError(f"{name}: the dataset has no images")
    if not any(record.get("annotations") for record in dicts):
        raise DatasetError(f"{name}: the dataset has no annotations")
    return dicts
