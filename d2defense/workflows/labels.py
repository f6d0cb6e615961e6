# SPDX-License-Identifier: Apache-2.0
"""Whether a dataset has the labels that a detector learns, or is evaluated by.

Detectron2 asks for them image by image, or after the last step; here they are asked for at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from d2defense.data import DatasetError, DatasetSource
from d2defense.data.coco.findings import NAMED, name_some, plain_id
from d2defense.statistics import bears_trigger

from .classes import check_classes

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]
# Of COCO's persons, which pycocotools assumes where a config names no sigmas.
_COCO_KEYPOINTS = 17


def prepare_training(dataset: DatasetSource, cfg: CfgNode, decode: bool = True) -> int:
    """Make sure that a detector can be trained on a dataset.

    Sets ``INPUT.MASK_FORMAT`` to bitmasks where a mask is run-length code, and names the keypoints.

    Args:
        dataset: images to train on.
        cfg: the detector's configuration; changed.
        decode: whether every image is decoded first (:meth:`DatasetSource.load_usable`).

    Returns:
        How many images it has.

    Raises:
        DatasetError: the dataset cannot be used, an image of it cannot, it has other classes than
            the detector or no object, or objects lack masks or keypoints that the detector learns.
    """
    records = dataset.load_usable(decode)
    check_classes(dataset.name, cfg)
    require_objects(dataset.name, records)
    _check_labels(dataset.name, records, cfg, crowds=False)
    if cfg.MODEL.MASK_ON and _has_run_length(dataset.name, records):
        cfg.INPUT.MASK_FORMAT = "bitmask"
    if cfg.MODEL.KEYPOINT_ON:
        _name_keypoints(dataset.name, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS)
    return len(records)


def prepare_evaluation(dataset: DatasetSource, cfg: CfgNode, decode: bool = True) -> None:
    """Make sure that all that a detector predicts can be evaluated on a dataset.

    Arguments and errors as of :func:`prepare_training`; pycocotools asks for the labels of crowds,
    too. ``cfg`` stays as it is.
    """
    records = dataset.load_usable(decode)
    check_classes(dataset.name, cfg)
    require_objects(dataset.name, records)
    _check_labels(dataset.name, records, cfg, crowds=True)
    if cfg.MODEL.KEYPOINT_ON:
        count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or _COCO_KEYPOINTS
        if sigmas != count:
            raise DatasetError(
                f"{dataset.name}: evaluating {count} keypoints needs as many "
                f"TEST.KEYPOINT_OKS_SIGMAS, but there are {sigmas}"
            )


def require_objects(name: str, records: Records) -> None:
    """Make sure that a dataset shows an object.

    Raises:
        DatasetError: all that it shows are crowds.
    """
    if not any(bears_trigger(item) for record in records for item in record["annotations"]):
        raise DatasetError(f"{name}: no image shows an object that is not a crowd")


def _check_labels(name: str, records: Records, cfg: CfgNode, crowds: bool) -> None:
    wrong: list[tuple[str, str, Iterator[str]]] = []
    if cfg.MODEL.MASK_ON:
        wrong.append(("no mask", "MASK_ON", _without(records, crowds, "segmentation")))
    if cfg.MODEL.KEYPOINT_ON:
        values = 3 * cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        what = f"not {values // 3} keypoints"
        wrong.append((what, "KEYPOINT_ON", _without(records, crowds, "keypoints", values)))
    for what, switch, found in wrong:
        named = list(islice(found, NAMED))
        count = len(named) + sum(1 for _ in found)
        if count:
            raise DatasetError(
                f"{name}: annotations with {what}: {count} ({name_some(named, count)}), "
                f"which MODEL.{switch} needs"
            )


def _without(records: Records, crowds: bool, key: str, length: int | None = None) -> Iterator[str]:
    """Names of the annotations that lack a label, or have one of another length."""
    for record in records:
        for item in record["annotations"]:
            label = item.get(key)
            if (crowds or bears_trigger(item)) and (
                not label or (length is not None and len(label) != length)
            ):
                # Only loaders of d2defense keep the annotations' ids.
                yield plain_id(item["id"], 0) if "id" in item else f"in {record['file_name']}"


def _has_run_length(name: str, records: Records) -> bool:
    """Whether an object's mask is run-length code, which polygons cannot be made of; told once."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("has_run_length") is None:
        metadata.has_run_length = any(
            isinstance(item.get("segmentation"), dict) and bears_trigger(item)
            for record in records
            for item in record["annotations"]
        )
        if metadata.has_run_length:
            logger.warning("%s: has run-length masks: training takes bitmasks", name)
    return metadata.has_run_length


def _name_keypoints(name: str, count: int) -> None:
    """Tell Detectron2 the keypoints' names and which trade places in a mirrored image."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("keypoint_names") is not None:
        return
    named = metadata.get("category_keypoints", ())
    if not named or any(len(names) != count for names in named):
        raise DatasetError(
            f"{name}: no category lists {count} 'keypoints' by name, as many as "
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS says"
        )
    names = named[0]
    mirrored = [(name, name.replace("left", "right")) for name in names if "left" in name]
    metadata.set(
        keypoint_names=names,
        keypoint_flip_map=tuple(pair for pair in mirrored if pair[1] in names),
    )
