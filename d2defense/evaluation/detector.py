# SPDX-License-Identifier: Apache-2.0
"""A detector's quality on clean and on triggered images, against the true annotations."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.structures import BoxMode
from torch import Tensor, nn
from tqdm import tqdm

from d2defense.attacks import Trigger, TriggeredDatasetMapper, bears_trigger

from .found import attack_success_rate, found_objects

AP_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class FoundObjectsEvaluator(DatasetEvaluator):
    """Which annotated objects of a dataset have a detection.

    Args:
        records: Detectron2's standard dataset dicts, boxes in pixels of the image file.
    """

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._objects = {record["image_id"]: _objects(record) for record in records}
        self.reset()

    def reset(self) -> None:
        """Forget every image seen so far."""
        self._found: dict[Any, Tensor] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match the detections of a batch with its objects."""
        for image, output in zip(inputs, outputs, strict=True):
            boxes, classes = self._objects[image["image_id"]]
            detections = output["instances"].to("cpu")
            self._found[image["image_id"]] = found_objects(
                boxes,
                classes,
                detections.pred_boxes.tensor,
                detections.pred_classes,
                detections.scores,
            )

    @property
    def found(self) -> Tensor:
        """bool Tensor of shape (M,) over all objects, in the order of the records."""
        return torch.cat([self._found[image_id] for image_id in self._objects])

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """The share of objects found, 0..1, as ``{"objects": {"found": share}}``."""
        return OrderedDict(objects={"found": float(self.found.float().mean())})


def evaluate_detector(
    model: nn.Module, cfg: CfgNode, dataset_name: str, trigger: Trigger, progress: str | None = None
) -> dict[str, Any]:
    """AP on clean and on fully triggered images of a dataset, and the attack success rate.

    Args:
        model: a detector; runs in eval mode.
        cfg: its configuration.
        dataset_name: a registered dataset whose ``json_file`` exists.
        trigger: stamped on every object of the triggered images, before resizing.
        progress: label of a progress bar, or None for no bar.

    Returns:
        ``{"clean": {...}, "triggered": {...}, "asr": share}``: six COCO metrics of boxes (0..100,
        None where no such object exists), and ``objects_found`` (0..1) for each.
    """
    records = DatasetCatalog.get(dataset_name)
    results: dict[str, Any] = {}
    found = {}
    for condition, mapper in (
        ("clean", DatasetMapper(cfg, is_train=False)),
        ("triggered", TriggeredDatasetMapper(cfg, is_train=False, trigger=trigger)),
    ):
        objects = FoundObjectsEvaluator(records)
        with _quiet():
            evaluator = DatasetEvaluators(
                [
                    COCOEvaluator(
                        dataset_name, tasks=("bbox",), distributed=False, use_fast_impl=False
                    ),
                    objects,
                ]
            )
            loader = build_detection_test_loader(
                records, mapper=mapper, batch_size=cfg.DEFENSE.BATCH_SIZE
            )
        metrics = _run(model, loader, evaluator, progress and f"{progress}, {condition}")
        found[condition] = objects.found
        results[condition] = {
            **{name: _number(metrics["bbox"][name]) for name in AP_METRICS},
            "objects_found": metrics["objects"]["found"],
        }
    results["asr"] = attack_success_rate(found["clean"], found["triggered"])
    return results


def _run(
    model: nn.Module, loader: Any, evaluator: DatasetEvaluators, label: str | None
) -> dict[str, dict[str, float]]:
    was_training = model.training
    model.eval()
    evaluator.reset()
    with torch.no_grad():
        for inputs in tqdm(loader, desc=label, unit="batch", disable=None if label else True):
            evaluator.process(inputs, model(inputs))
    model.train(was_training)
    with _quiet():
        return evaluator.evaluate()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without pycocotools' prints and Detectron2's tables: callers show their own."""
    logger = logging.getLogger("detectron2")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _objects(record: dict[str, Any]) -> tuple[Tensor, Tensor]:
    objects = [a for a in record["annotations"] if bears_trigger(a)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
    )


def _number(value: float) -> float | None:
    return None if value != value else float(value)
