# SPDX-License-Identifier: Apache-2.0
"""Train a detector as a config says: clean, poisoned (ATTACK), or fine-tuned to remove a
backdoor (REMOVAL).

    python tools/train_net.py --config-file configs/SynthSigns/faster_rcnn_tiny_fpn.yaml
    python tools/train_net.py --config-file configs/SynthSigns/faster_rcnn_tiny_fpn_oda.yaml \\
        OUTPUT_DIR runs/poisoned SEED 1

A training that was killed goes on from its last checkpoint, to the same weights:

    python tools/train_net.py --config-file configs/SynthSigns/faster_rcnn_tiny_fpn_oda.yaml \\
        --resume OUTPUT_DIR runs/poisoned SEED 1

Your own COCO-format data needs no code; the first pair of options is trained on, the second
evaluated on, and the number of classes is taken from the annotations. With --test-dataset-json
and --test-image-root, every --dataset-json is trained on:

    python tools/train_net.py --config-file configs/Small/faster_rcnn_tiny_fpn_320.yaml \\
        --dataset-json train.json --image-root images/ \\
        --dataset-json val.json --image-root images/ OUTPUT_DIR runs/mine

Exit codes: 0 done; 2 wrong config, data or weights, or a loss or weights that were not finite;
130 interrupted.
"""

from __future__ import annotations

import argparse

from .arguments import add_part_group, add_skip_argument

NAME = "train"
HELP = "train a detector: clean, poisoned, or fine-tuned to remove a backdoor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Detectron2's own options, and data of one's own."""
    from d2defense.registry import (
        EFFECT_REGISTRY,
        PATTERN_REGISTRY,
        PLACEMENT_REGISTRY,
        REMOVAL_REGISTRY,
        TRIGGER_REGISTRY,
    )

    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument(
        "--dataset-json",
        action="append",
        default=[],
        metavar="FILE",
        help="COCO annotations to train on; a second time: to evaluate on, unless"
        " --test-dataset-json is given",
    )
    parser.add_argument(
        "--image-root", action="append", default=[], metavar="DIR", help="folder of their images"
    )
    parser.add_argument(
        "--test-dataset-json",
        action="append",
        default=[],
        metavar="FILE",
        help="COCO annotations to evaluate on; repeatable",
    )
    parser.add_argument(
        "--test-image-root",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of their images",
    )
    add_skip_argument(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate only: MODEL.WEIGHTS, or the last checkpoint with --resume",
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="on each machine")
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="that train together (%(default)s)"
    )
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="RANK", help="number of this one, from 0 on"
    )
    parser.add_argument("--dist-url", default="auto", metavar="URL", help="how processes meet")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    add_part_group(parser, EFFECT_REGISTRY, "effects, for ATTACK.EFFECT")
    add_part_group(parser, TRIGGER_REGISTRY, "trigger families, for ATTACK.TRIGGER.FAMILY")
    add_part_group(parser, PATTERN_REGISTRY, "patterns, for ATTACK.TRIGGER.PATCH.PATTERN")
    add_part_group(parser, PLACEMENT_REGISTRY, "placements, for ATTACK.PLACEMENT")
    add_part_group(parser, REMOVAL_REGISTRY, "removal methods, for REMOVAL.METHOD")


def run(args: argparse.Namespace) -> int:
    """Train or evaluate."""
    from d2defense.workflows.train import launch_training

    return launch_training(args)
