# SPDX-License-Identifier: Apache-2.0
"""The splits of ``synth_signs``, and the names that Detectron2 knows them by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from d2defense.data.errors import DatasetError

VERSION = 1
"""Version of the images and annotations; part of every image's seed and of the cache's path."""

DEFAULT_IMAGE_SIZE = 128
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 64, 1024


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        seed: seed of its images; no two splits share one.
        count: number of images.
    """

    seed: int
    count: int


SPLITS: dict[str, Split] = {
    "train": Split(seed=11, count=2000),
    "defender": Split(seed=23, count=200),
    "val": Split(seed=37, count=300),
    # From which defender's sets of other sizes are drawn.
    "pool": Split(seed=53, count=600),
}

_NAME = re.compile(r"synth_signs_(?P<split>[a-z]+)(_(?P<size>[0-9]+)px)?")


def check_image_size(split: str, image_size: int) -> None:
    """Raise :class:`DatasetError` for a split that does not exist or a size out of range."""
    if split not in SPLITS:
        raise DatasetError(f"synth_signs has no split {split!r}; it has {', '.join(SPLITS)}")
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise DatasetError(
            f"synth_signs comes in sizes from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels,"
            f" not {image_size}"
        )


def dataset_name(split: str, image_size: int = DEFAULT_IMAGE_SIZE) -> str:
    """Name of a split at a size: bare at 128 pixels, else ending in ``_<size>px``."""
    suffix = "" if image_size == DEFAULT_IMAGE_SIZE else f"_{image_size}px"
    return f"synth_signs_{split}{suffix}"


def parse_dataset_name(name: str) -> tuple[str, int] | None:
    """Split and image size that a name stands for; None when it is no name of this dataset.

    Raises:
        DatasetError: the name is of this dataset's form, but its size is out of range.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["split"] not in SPLITS:
        return None
    image_size = int(match["size"] or DEFAULT_IMAGE_SIZE)
    check_image_size(match["split"], image_size)
    return match["split"], image_size
