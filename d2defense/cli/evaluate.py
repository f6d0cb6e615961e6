# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint on clean and on triggered images, and what an attack does to it.

Prints AP, AP50, AP75, APs, APm and APl on both, and on triggered images against the labels that the
attacker wants; the share of objects found, detections on no object an image, and the inconsistency
of the modules (tau, gap). Of the attack: its success rate (ASR) by its effect, that of clean
detectors under the same trigger (--control), the share of victims that are still found as what
they are (TDR), that of other objects (retain rate), and whether it took: with an ASR of at least
0.5, and 0.3 above the control. The JSON has further statistics. Without --attack or --opts the
attack is disappearance by the paper's white patch.

    d2defense evaluate runs/repaired --dataset synth_signs_val
    d2defense evaluate runs/attacks/ghost_patch --dataset synth_signs_val \\
        --attack configs/SynthSigns/attacks/ghost_patch.yaml --control runs/clean_1 runs/clean_2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import (
    add_attack_argument,
    add_common_arguments,
    add_dataset_arguments,
    add_part_group,
    add_skip_argument,
    configure_logging,
    dataset_source,
    defense_config,
)

NAME = "evaluate"
HELP = "AP on clean and on triggered images, and what an attack does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from d2defense.registry import (
        EFFECT_REGISTRY,
        PATTERN_REGISTRY,
        PLACEMENT_REGISTRY,
        TRIGGER_REGISTRY,
    )

    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="output folders or weights files"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write JSON")
    add_attack_argument(parser)
    parser.add_argument(
        "--control",
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="clean detectors of the same classes, measured under the same trigger",
    )
    add_dataset_arguments(parser)
    add_skip_argument(parser)
    add_common_arguments(parser)
    add_part_group(parser, EFFECT_REGISTRY, "effects, for ATTACK.EFFECT")
    add_part_group(parser, TRIGGER_REGISTRY, "trigger families, for ATTACK.TRIGGER.FAMILY")
    add_part_group(parser, PATTERN_REGISTRY, "patterns, for ATTACK.TRIGGER.PATCH.PATTERN")
    add_part_group(parser, PLACEMENT_REGISTRY, "placements, for ATTACK.PLACEMENT")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, and return 0, or 2 if a checkpoint could not be evaluated."""
    from d2defense.attacks import build_effect, class_names
    from d2defense.data import DatasetError
    from d2defense.files import write_json
    from d2defense.statistics import ObservationSettings
    from d2defense.triggers import build_trigger
    from d2defense.workflows.evaluation import evaluate, format_evaluation

    configure_logging()
    dataset = dataset_source(args, args.parser)
    try:
        cfg = defense_config(args, args.parser, args.attack)
        trigger, settings = build_trigger(cfg), ObservationSettings.from_config(cfg)
        effect = build_effect(cfg, class_names([dataset.ensure()]))
        results = evaluate(
            args.checkpoints, dataset, trigger, args.device, settings, effect, args.control
        )
    except (DatasetError, ValueError) as error:
        args.parser.error(str(error))
    print(format_evaluation(results))
    if args.output:
        write_json(args.output, results)
    return 2 if any(result["error"] for result in results) else 0
