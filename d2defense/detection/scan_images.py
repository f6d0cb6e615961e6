# SPDX-License-Identifier: Apache-2.0
"""The clean images of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.data import MetadataCatalog

from d2defense.data import DatasetError, DatasetSource
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.data.image_files import check_share, describe_unusable, unusable_images

from .images import sample_records
from .settings import ScanSettings
from .twin import MOST_IMAGES


@dataclass(frozen=True)
class ScanImages:
    """The clean images of a scan, the same for all of its checkpoints.

    Attributes:
        name: of the dataset.
        records: Detectron2's standard dataset dicts of the images drawn.
        class_names: of the dataset.
        fingerprint: SHA-256 over the records' pixels and annotations.
        warnings: one line each: what was left out.
        further: more records of the dataset, for a twin alone.
    """

    name: str
    records: list[dict[str, Any]]
    class_names: list[str]
    fingerprint: str
    warnings: tuple[str, ...] = ()
    further: tuple[dict[str, Any], ...] = ()

    @classmethod
    def load(cls, dataset: DatasetSource, settings: ScanSettings) -> ScanImages:
        """Draw the images that ``settings`` asks for.

        Of those drawn, images that cannot be used are left out. One of them would otherwise fail
        every checkpoint; unlike a measurement, a verdict does not depend on one image.

        Raises:
            DatasetError: the dataset is unknown, incomplete or shows no object, or more than half
                of the images cannot be used.
        """
        whole = dataset.load()
        records = sample_records(whole, settings.max_images, settings.seed)
        if not records:
            raise DatasetError(f"{dataset.name}: no image shows an object")
        unusable = unusable_images(records)
        warnings = []
        if unusable:
            line = describe_unusable(dataset.name, unusable, len(records))
            check_share(line, len(unusable), len(records))
            warnings.append(f"{line}; left out")
            left_out = {image.file_name for image in unusable}
            records = [record for record in records if record["file_name"] not in left_out]
        names = list(MetadataCatalog.get(dataset.name).get("thing_classes", []))
        fingerprint = dataset_fingerprint(records)
        drawn = {record["file_name"] for record in records}
        rest = [record for record in whole if record["file_name"] not in drawn]
        further = _usable(rest, settings) if settings.search.may_make_twin else []
        return cls(dataset.name, records, names, fingerprint, tuple(warnings), tuple(further))


def _usable(records: list[dict[str, Any]], settings: ScanSettings) -> list[dict[str, Any]]:
    """As many as a twin can use, drawn by seed."""
    drawn = sample_records(records, MOST_IMAGES, settings.seed)
    broken = {image.file_name for image in unusable_images(drawn)}
    return [record for record in drawn if record["file_name"] not in broken]
