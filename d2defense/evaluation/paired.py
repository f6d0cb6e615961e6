# SPDX-License-Identifier: Apache-2.0
"""The evaluators of a detector on clean and triggered images together."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from d2defense.attacks import Effect
from d2defense.statistics import ObservationSettings

from .attack import AttackEvaluator
from .coco import build_coco_evaluator
from .conditions import CLEAN, TRIGGERED, ConditionEvaluator
from .poisoned import build_poisoned_evaluator

#: What results against the attacker's labels are named after.
POISONED = "poisoned"


def build_paired_evaluator(
    cfg: CfgNode,
    dataset_name: str,
    tasks: tuple[str, ...],
    settings: ObservationSettings,
    effect: Effect,
    output_dir: str | Path | None = None,
) -> DatasetEvaluator:
    """COCO metrics on clean and on triggered images, and what the attack does.

    For the inputs of :func:`build_paired_test_loader` and the outputs of :class:`ProbedDetector`.
    Results are ``bbox`` and so on as of the stock evaluator, ``triggered_bbox`` and so on,
    ``poisoned_bbox`` of triggered images against the labels that the attacker wants, NaN where no
    label is left, and those of :class:`AttackEvaluator`.

    Args:
        cfg: the detector's configuration.
        dataset_name: a registered dataset with annotations.
        tasks: of :func:`predicted_tasks`.
        settings: how proposals are reduced.
        effect: of the attack.
        output_dir: detections on clean images are written here, those on triggered images to
            ``triggered`` below; None for nowhere.
    """
    folders = {CLEAN: output_dir, TRIGGERED: output_dir and Path(output_dir, TRIGGERED)}
    against_truth = [
        ConditionEvaluator(condition, build_coco_evaluator(cfg, dataset_name, tasks, folder))
        for condition, folder in folders.items()
    ]
    against_attacker = ConditionEvaluator(
        TRIGGERED,
        build_poisoned_evaluator(cfg, dataset_name, ("bbox",), effect),
        label=POISONED,
        heading=f"{TRIGGERED} images against {POISONED} labels",
    )
    num_classes = len(MetadataCatalog.get(dataset_name).thing_classes)
    attack = AttackEvaluator(DatasetCatalog.get(dataset_name), num_classes, settings, effect)
    return DatasetEvaluators([*against_truth, against_attacker, attack])
