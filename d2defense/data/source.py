# SPDX-License-Identifier: Apache-2.0
"""A dataset as a command line names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d2defense.data.coco import register_coco_dataset
from d2defense.data.registry import ensure_dataset, load_dataset


@dataclass(frozen=True)
class DatasetSource:
    """A registered dataset, or COCO-format files that are registered on first use.

    Attributes:
        name: registered, or to be registered.
        json_file: COCO annotations, None for a registered dataset.
        image_root: folder of the images, None for a registered dataset.
    """

    name: str
    json_file: str | None = None
    image_root: str | None = None

    def ensure(self) -> str:
        """Make sure that the dataset is registered and on disk; returns its name.

        Raises:
            DatasetError: it is unknown or incomplete.
        """
        if self.json_file is None or self.image_root is None:
            ensure_dataset(self.name)
        else:
            register_coco_dataset(self.name, self.json_file, self.image_root)
        return self.name

    def load(self) -> list[dict[str, Any]]:
        """Detectron2's standard dataset dicts.

        Raises:
            DatasetError: the dataset is unknown, incomplete or without annotations.
        """
        return load_dataset(self.ensure())
