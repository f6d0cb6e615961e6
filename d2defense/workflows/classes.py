# SPDX-License-Identifier: Apache-2.0
"""Whether a dataset and a detector speak of the same classes."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from d2defense.data import DatasetError
from d2defense.modeling import number_of_classes


def check_classes(dataset_name: str, cfg: CfgNode) -> None:
    """Make sure that class indices of a dataset can be those of a detector.

    Scans only need boxes; whoever trains or measures with the labels needs this.

    Args:
        dataset_name: a registered dataset that has been loaded.
        cfg: the detector's configuration.

    Raises:
        DatasetError: they have different numbers of classes.
    """
    classes = len(MetadataCatalog.get(dataset_name).get("thing_classes", []))
    if classes != number_of_classes(cfg):
        raise DatasetError(
            f"{dataset_name}: has {classes} classes, "
            f"but the detector tells {number_of_classes(cfg)} apart"
        )
