# SPDX-License-Identifier: Apache-2.0
"""The configuration of a fine-tuning run, made from that of the checkpoint it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from d2defense.registry import REMOVAL_REGISTRY


def removal_config(
    cfg: CfgNode,
    weights: Path,
    dataset: str,
    output_dir: Path,
    modules: Sequence[str],
    method: str,
    num_images: int,
) -> CfgNode:
    """A copy of ``cfg`` that fine-tunes ``weights`` on ``dataset``.

    ``REMOVAL.SOLVER`` gives the schedule, which the method may change; whatever the checkpoint's
    config says of attacks, training data and checkpoints is replaced.

    Args:
        cfg: the instrumented configuration of the checkpoint.
        weights: the weights file to start from.
        dataset: registered name of the defender's set.
        output_dir: folder of the new checkpoint.
        modules: module groups to reset.
        method: name in ``REMOVAL_REGISTRY``.
        num_images: that the dataset has.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.ATTACK.EFFECT = ""
    cfg.REMOVAL.METHOD = method
    cfg.REMOVAL.MODULES = tuple(modules)
    for key, value in cfg.REMOVAL.SOLVER.items():
        cfg.SOLVER[key] = value
    REMOVAL_REGISTRY.get(method).change_schedule(cfg, num_images)
    cfg.SOLVER.STEPS = ()
    # Beyond the last step: only the final weights are kept.
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_ITER + 1
    cfg.TEST.EVAL_PERIOD = 0
    return cfg
