# SPDX-License-Identifier: Apache-2.0
"""Training from a config file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2defense.attacks import ATTACK_REGISTRY
from d2defense.config import get_d2defense_cfg, merge_config_file
from d2defense.data import DatasetSource, ensure_dataset
from d2defense.engine import Trainer, resolve_device
from d2defense.modeling import instrument_config
from d2defense.removal import RenewalTrainer


def launch_training(args: argparse.Namespace) -> int:
    """Train or evaluate in as many processes as asked for.

    Args:
        args: as Detectron2's ``default_argument_parser`` gives them.

    Returns:
        Exit code: 0, or 2 after one line on what is wrong with the config.
    """
    try:
        setup_config(args)
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        # No logger has a handler before default_setup.
        print(f"error: {args.config_file}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    num_gpus = args.num_gpus if torch.cuda.is_available() else 0
    launch(
        _main,
        max(1, num_gpus),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    return 0


def setup_config(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of a training run.

    Raises:
        OSError, KeyError, ValueError, AssertionError, yaml.YAMLError: what Detectron2 raises for a
            file, key or value that is wrong; ``ValueError`` also for an unknown attack or dataset,
            and for a detector that cannot be probed.
    """
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, args.config_file)
    _use_own_data(cfg, args.dataset_json, args.image_root)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    if cfg.ATTACK.NAME and cfg.ATTACK.NAME not in ATTACK_REGISTRY:
        known = ", ".join(name for name, _ in ATTACK_REGISTRY)
        raise ValueError(f"ATTACK.NAME is {cfg.ATTACK.NAME!r}, none of {known}")
    if cfg.REMOVAL.METHOD and not Path(cfg.MODEL.WEIGHTS).is_file():
        raise ValueError(f"MODEL.WEIGHTS: no weights file {cfg.MODEL.WEIGHTS!r} to start from")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        ensure_dataset(name)
    cfg = instrument_config(cfg)
    cfg.freeze()
    return cfg


def _use_own_data(cfg: CfgNode, json_files: list[str], image_roots: list[str]) -> None:
    """Train on the first COCO-format dataset of the command line and evaluate on the second."""
    if len(json_files) != len(image_roots) or len(json_files) > 2:
        raise ValueError(
            "give --dataset-json and --image-root in pairs: one to train on, one to evaluate on"
        )
    for key, json_file, image_root in zip(("TRAIN", "TEST"), json_files, image_roots, strict=False):
        source = DatasetSource(json_file, json_file, image_root)
        source.load()
        cfg.DATASETS[key] = (source.name,)
        classes = MetadataCatalog.get(source.name).thing_classes
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)


def trainer_class(cfg: CfgNode) -> type[Trainer]:
    """The trainer that ``REMOVAL.METHOD`` asks for."""
    return RenewalTrainer if cfg.REMOVAL.METHOD else Trainer


def _main(args: argparse.Namespace) -> None:
    cfg = setup_config(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2defense")
    trainer_type = trainer_class(cfg)
    if args.eval_only:
        model = trainer_type.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = trainer_type.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    trainer = trainer_type(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
