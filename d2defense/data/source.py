# SPDX-License-Identifier: Apache-2.0
"""A dataset as a command line names it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2defense.data.coco import leave_out_images, register_coco_dataset
from d2defense.data.errors import DatasetError
from d2defense.data.image_files import check_share, describe_unusable, unusable_images
from d2defense.data.registry import ensure_dataset, load_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSource:
    """A registered dataset, or COCO-format files that are registered on first use.

    Attributes:
        name: registered, or to be registered.
        json_file: COCO annotations, None for a registered dataset.
        image_root: folder of the images, None for a registered dataset.
        skip_unusable: whether :meth:`load_usable` leaves images out that cannot be used.
    """

    name: str
    json_file: str | None = None
    image_root: str | None = None
    skip_unusable: bool = False

    def ensure(self) -> str:
        """Make sure that the dataset is registered and on disk; returns its name.

        What was put right in files of one's own is logged once, a line a kind.

        Raises:
            DatasetError: it is unknown or incomplete.
        """
        if self.json_file is None or self.image_root is None:
            ensure_dataset(self.name)
        else:
            is_new = self.name not in DatasetCatalog
            for finding in register_coco_dataset(self.name, self.json_file, self.image_root):
                if is_new:
                    logger.warning("%s: %s", self.json_file, finding)
        return self.name

    def load(self) -> list[dict[str, Any]]:
        """Detectron2's standard dataset dicts.

        Raises:
            DatasetError: the dataset is unknown, incomplete or without annotations.
        """
        return load_dataset(self.ensure())

    def load_usable(self, decode: bool = True) -> list[dict[str, Any]]:
        """:meth:`load`, with every image file looked at, once in a process.

        Args:
            decode: whether every image is decoded (:func:`unusable_images`).

        Raises:
            DatasetError: as :meth:`load`; or an image cannot be used and none is to be left out,
                or more than half of them would be.
        """
        records = self.load()
        if MetadataCatalog.get(self.name).get("images_are_usable"):
            return records
        unusable = unusable_images(records, decode)
        if unusable:
            line = describe_unusable(self.name, unusable, len(records))
            if self.json_file is None:
                raise DatasetError(line)
            if not self.skip_unusable:
                raise DatasetError(f"{line}; --skip-unusable leaves them out")
            check_share(line, len(unusable), len(records))
            logger.warning("%s; left out", line)
            leave_out_images(self.name, [image.image_id for image in unusable])
            records = self.load()
        MetadataCatalog.get(self.name).images_are_usable = True
        return records
