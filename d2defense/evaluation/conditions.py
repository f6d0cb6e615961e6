# SPDX-License-Identifier: Apache-2.0
"""Clean and triggered test images side by side, so that one pass over the data measures both."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator
from torch.utils.data import DataLoader

from d2defense.attacks import Effect, TriggeredDatasetMapper
from d2defense.triggers import Trigger

logger = logging.getLogger(__name__)

CLEAN, TRIGGERED = "clean", "triggered"
CONDITIONS = (CLEAN, TRIGGERED)
# Key of a dataset dict that says which of them it is.
CONDITION = "condition"


class ConditionDatasetMapper:
    """Detectron2's test mapper, which puts the trigger on triggered images.

    Args:
        cfg: the detector's configuration (``INPUT.*_TEST``, ``INPUT.FORMAT``).
        trigger: on the images as read, before resizing.
        effect: says where.
    """

    def __init__(self, cfg: CfgNode, trigger: Trigger, effect: Effect) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        # Only pixels are read, and the mapper would ask the training data for its keypoints.
        cfg.MODEL.KEYPOINT_ON = False
        self._mappers = {
            CLEAN: DatasetMapper(cfg, is_train=False),
            TRIGGERED: TriggeredDatasetMapper(cfg, is_train=False, trigger=trigger, effect=effect),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's input for one dataset dict, whose ``condition`` it keeps."""
        return self._mappers[dataset_dict[CONDITION]](dataset_dict)


def build_paired_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    trigger: Trigger,
    effect: Effect,
    batch_size: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Detectron2's test loader over every image twice in a row: clean, then triggered.

    Each input is a dict as stock loaders give it, with one more key: ``condition``, one of
    :data:`CONDITIONS`. Triggered ones have ``places`` too
    (:class:`d2defense.attacks.TriggeredDatasetMapper`).

    Args:
        cfg: the detector's configuration.
        dataset_name: a registered dataset.
        trigger: on the triggered images.
        effect: says where.
        batch_size: images a batch, of both conditions together.
        num_workers: processes that read images.
    """
    records = [
        {**record, CONDITION: condition}
        for record in DatasetCatalog.get(dataset_name)
        for condition in CONDITIONS
    ]
    return build_detection_test_loader(
        records,
        mapper=ConditionDatasetMapper(cfg, trigger, effect),
        batch_size=batch_size,
        num_workers=num_workers,
    )


class ConditionEvaluator(DatasetEvaluator):
    """Another evaluator on the images of one condition.

    Args:
        condition: one of :data:`CONDITIONS`.
        evaluator: sees no other images.
        label: what the results are named after; the condition if None.
        heading: of the evaluator's tables in the log; says which images if None.
    """

    def __init__(
        self,
        condition: str,
        evaluator: DatasetEvaluator,
        label: str | None = None,
        heading: str | None = None,
    ) -> None:
        self._condition = condition
        self._evaluator = evaluator
        self._label = label or condition
        self._heading = heading or f"{condition} images"

    def reset(self) -> None:
        """Reset the evaluator."""
        self._evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Hand on the images of the condition."""
        chosen = [
            (image, output)
            for image, output in zip(inputs, outputs, strict=True)
            if image[CONDITION] == self._condition
        ]
        if chosen:
            self._evaluator.process(*map(list, zip(*chosen, strict=True)))

    def evaluate(self) -> OrderedDict[str, Any]:
        """The evaluator's results, by the names of :func:`result_name`."""
        # Above the evaluator's own tables, which do not tell the conditions apart.
        logger.info("%s:", self._heading)
        results = self._evaluator.evaluate() or {}
        return OrderedDict(
            (result_name(task, self._label), metrics) for task, metrics in results.items()
        )


def result_name(task: str, label: str) -> str:
    """Name of a task's results: that of stock evaluators on clean images, else a longer one."""
    return task if label == CLEAN else f"{label}_{task}"
