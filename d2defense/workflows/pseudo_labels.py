# SPDX-License-Identifier: Apache-2.0
"""Labels for images that have none: what the suspect itself says of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from tqdm import tqdm

from d2defense.checkpoint import CheckpointSource, build_detector
from d2defense.data import DatasetError, DatasetSource
from d2defense.data.image_files import check_share, describe_unusable, unusable_images
from d2defense.detection.search import names_of_classes
from d2defense.files import write_json
from d2defense.modeling import number_of_classes
from d2defense.statistics import SCORE_THRESHOLD

logger = logging.getLogger(__name__)

#: Where a command writes such labels.
PSEUDO_LABELS_FILE = "pseudo_labels.json"


def pseudo_labels_of(
    source: CheckpointSource,
    files: Sequence[Path],
    path: Path,
    class_names: Sequence[str] = (),
    skip_unusable: bool = False,
    device: str | None = None,
) -> DatasetSource:
    """Label images by a detector's own detections, as COCO annotations.

    Right for images without a trigger: there a backdoored detector does what it is for. Detections
    count from a score of 0.5 on. Masks and keypoints are among the labels where it predicts them.

    Args:
        source: a checkpoint without an error.
        files: of the images.
        path: gets the annotations.
        class_names: of the detector; "class 0" and on if there are not as many as it has.
        skip_unusable: leave images out that cannot be read, instead of ending.
        device: of the model; its config's choice if None.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DatasetError: an image cannot be read, or the detector finds nothing on any of them.
    """
    records = [{"file_name": str(file), "image_id": number} for number, file in enumerate(files, 1)]
    records = _usable(records, skip_unusable)
    model, cfg = build_detector(source.weights, source.config, device)
    names = names_of_classes(number_of_classes(cfg), class_names)
    mapper = DatasetMapper(cfg, is_train=False)
    root = Path(os.path.commonpath([Path(file).absolute().parent for file in files]))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in tqdm(records, "pseudo-labels", unit="image", disable=None):
        image = mapper(record)
        with torch.no_grad():
            (output,) = model([image])
        file_name = str(Path(record["file_name"]).absolute().relative_to(root))
        size = {"height": image["height"], "width": image["width"]}
        images.append({"id": record["image_id"], "file_name": file_name, **size})
        for item in _annotations(output["instances"].to("cpu"), record["image_id"]):
            annotations.append(item | {"id": len(annotations) + 1})
    if not annotations:
        raise DatasetError(
            f"{root}: {source.name} finds no object on any of {len(images)} images, "
            "so they have no labels to learn from"
        )
    categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return DatasetSource(str(path), str(path), str(root))


def pseudo_labelled(
    source: CheckpointSource, dataset: DatasetSource, path: Path, device: str | None = None
) -> DatasetSource:
    """The images of a dataset, labelled by :func:`pseudo_labels_of`; its own labels are not read.

    Arguments and errors as there.
    """
    files = [Path(record["file_name"]) for record in dataset.load()]
    names = MetadataCatalog.get(dataset.name).get("thing_classes", ())
    return pseudo_labels_of(source, files, path, names, dataset.skip_unusable, device)


def _usable(records: list[dict[str, Any]], skip_unusable: bool) -> list[dict[str, Any]]:
    unusable = unusable_images(records)
    if not unusable:
        return records
    line = describe_unusable("images without labels", unusable, len(records))
    if not skip_unusable:
        raise DatasetError(f"{line}; --skip-unusable leaves them out")
    check_share(line, len(unusable), len(records))
    logger.warning("%s; left out", line)
    left_out = {image.image_id for image in unusable}
    return [record for record in records if record["image_id"] not in left_out]


def _annotations(found: Instances, image_id: int) -> Iterator[dict[str, Any]]:
    """Detections of an image that count, as COCO has annotations."""
    counts = (found.scores >= SCORE_THRESHOLD) & found.pred_boxes.nonempty()
    for item in instances_to_coco_json(found[counts], image_id):
        del item["score"]
        item["category_id"] += 1
        width, height = item["bbox"][2:]
        item |= {"area": width * height, "iscrowd": 0}
        if "keypoints" in item:
            # 2: there, and to be seen.
            item["keypoints"][2::3] = [2] * (len(item["keypoints"]) // 3)
            item["num_keypoints"] = len(item["keypoints"]) // 3
        yield item
