# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from d2defense.checkpoint import find_checkpoints, load_config
from d2defense.config import (
    add_part_config,
    config_root,
    get_d2defense_cfg,
    merge_config_file,
)
from d2defense.removal import RemovalTrainer, removal_config


@pytest.fixture
def build_tiny():
    """A function from the name of a shipped tiny detector to one of random weights, and its
    configuration."""

    def build(name: str) -> tuple[torch.nn.Module, CfgNode]:
        cfg = get_d2defense_cfg()
        merge_config_file(cfg, config_root() / "SynthSigns" / f"{name}.yaml")
        cfg.MODEL.DEVICE = "cpu"
        return build_model(cfg), cfg

    return build


@pytest.fixture
def source(untrained_checkpoint):
    """An untrained checkpoint."""
    (source,) = find_checkpoints([untrained_checkpoint])
    return source


@pytest.fixture
def defender(make_coco_dataset, sign_scenes):
    """A few clean labelled images."""
    return make_coco_dataset(sign_scenes(4))


@pytest.fixture
def make_trainer(untrained_checkpoint, make_coco_dataset, sign_scenes, tmp_path):
    """A function from overrides to a trainer that starts from an untrained checkpoint."""
    dataset = make_coco_dataset(sign_scenes(4))

    def make(method: str, *overrides: object) -> RemovalTrainer:
        cfg = load_config(untrained_checkpoint / "config.yaml")
        cfg.MODEL.DEVICE = "cpu"
        add_part_config(cfg)
        cfg.merge_from_list(
            ["REMOVAL.SOLVER.MAX_ITER", 3, "REMOVAL.SOLVER.IMS_PER_BATCH", 2, *overrides]
        )
        weights = untrained_checkpoint / "model_final.pth"
        output = tmp_path / method
        output.mkdir(exist_ok=True)
        return RemovalTrainer(removal_config(cfg, weights, dataset.name, output, (), method, 4))

    return make
