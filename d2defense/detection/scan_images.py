# SPDX-License-Identifier: Apache-2.0
"""The clean images of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog

from d2defense.data import DatasetError, DatasetSource
from d2defense.data.fingerprint import dataset_fingerprint

from .images import sample_records
from .settings import ScanSettings


@dataclass(frozen=True)
class ScanImages:
    """The clean images of a scan, the same for all of its checkpoints.

    Attributes:
        name: of the dataset.
        records: Detectron2's standard dataset dicts of the images drawn.
        class_names: of the dataset.
        fingerprint: SHA-256 over the records' pixels and annotations.
    """

    name: str
    records: list[dict[str, Any]]
    class_names: list[str]
    fingerprint: str

    @classmethod
    def load(cls, dataset: DatasetSource, settings: ScanSettings) -> ScanImages:
        """Draw the images that ``settings`` asks for.

        Raises:
            DatasetError: the dataset is unknown, incomplete or shows no object.
        """
        records = sample_records(dataset.load(), settings.max_images, settings.seed)
        if not records:
            raise DatasetError(f"{dataset.name}: no image shows an object")
        names = list(MetadataCatalog.get(dataset.name).get("thing_classes", []))
        return cls(dataset.name, records, names, dataset_fingerprint(records))
