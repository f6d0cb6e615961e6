# SPDX-License-Identifier: Apache-2.0
"""The evaluators of a detector, on clean images and on both kinds."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

from d2defense.statistics import ObservationSettings

from .attack import AttackEvaluator
from .conditions import CLEAN, TRIGGERED, ConditionEvaluator


def predicted_tasks(cfg: CfgNode) -> tuple[str, ...]:
    """COCO's names of what a detector predicts: boxes, and masks and keypoints if it does."""
    tasks = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    return tuple(task for task, predicted in tasks.items() if predicted)


def build_coco_evaluator(
    cfg: CfgNode,
    dataset_name: str,
    tasks: tuple[str, ...],
    output_dir: str | Path | None = None,
) -> COCOEvaluator:
    """Detectron2's evaluator with the metrics of pycocotools.

    Args:
        cfg: the detector's configuration.
        dataset_name: a registered dataset.
        tasks: of :func:`predicted_tasks`.
        output_dir: detections are written here; None for nowhere.
    """
    return COCOEvaluator(
        dataset_name,
        tasks=tasks,
        output_dir=None if output_dir is None else str(output_dir),
        use_fast_impl=False,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )


def build_paired_evaluator(
    cfg: CfgNode,
    dataset_name: str,
    tasks: tuple[str, ...],
    settings: ObservationSettings,
    output_dir: str | Path | None = None,
) -> DatasetEvaluator:
    """COCO metrics on clean and on triggered images, and what the trigger does.

    For the inputs of :func:`build_paired_test_loader` and the outputs of :class:`ProbedDetector`.
    Results are ``bbox`` and so on as of the stock evaluator, ``triggered_bbox`` and so on, and
    those of :class:`AttackEvaluator`.

    Args:
        cfg: the detector's configuration.
        dataset_name: a registered dataset with annotations.
        tasks: of :func:`predicted_tasks`.
        settings: how proposals are reduced.
        output_dir: detections on clean images are written here, those on triggered images to
            ``triggered`` below; None for nowhere.
    """
    folders = {CLEAN: output_dir, TRIGGERED: output_dir and Path(output_dir, TRIGGERED)}
    return DatasetEvaluators(
        [
            *(
                ConditionEvaluator(
                    condition, build_coco_evaluator(cfg, dataset_name, tasks, folder)
                )
                for condition, folder in folders.items()
            ),
            AttackEvaluator(DatasetCatalog.get(dataset_name), settings),
        ]
    )
