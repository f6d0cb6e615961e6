# SPDX-License-Identifier: Apache-2.0
"""Detectron2's COCO evaluator, as every evaluation here has it."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator


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
