# SPDX-License-Identifier: Apache-2.0
"""Measure a checkpoint on clean and on fully triggered images.

Prints AP, AP50, AP75, APs, APm and APl on both, the share of objects found, the inconsistency of
the modules (tau, gap), and the attack success rate (ASR): of the objects found without the trigger,
the share that vanishes with it. Under one half, the attack fails. The JSON has further statistics.
The trigger is ATTACK.TRIGGER: the paper's white patch unless --opts say otherwise.

    d2defense evaluate runs/repaired --dataset synth_signs_val
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import (
    add_common_arguments,
    add_dataset_arguments,
    add_part_group,
    add_skip_argument,
    configure_logging,
    dataset_source,
    defense_config,
)

NAME = "evaluate"
HELP = "AP on clean and on triggered images, and the attack success rate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from d2defense.registry import PATTERN_REGISTRY

    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="output folders or weights files"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write JSON")
    add_dataset_arguments(parser)
    add_skip_argument(parser)
    add_common_arguments(parser)
    add_part_group(parser, PATTERN_REGISTRY, "patterns, for ATTACK.TRIGGER.PATTERN")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, and return 0, or 2 if a checkpoint could not be evaluated."""
    from d2defense.attacks import Trigger
    from d2defense.data import DatasetError
    from d2defense.files import write_json
    from d2defense.statistics import ObservationSettings
    from d2defense.workflows.evaluation import evaluate, format_evaluation

    configure_logging()
    dataset = dataset_source(args, args.parser)
    try:
        cfg = defense_config(args, args.parser)
        trigger, settings = Trigger.from_config(cfg), ObservationSettings.from_config(cfg)
        results = evaluate(args.checkpoints, dataset, trigger, args.device, settings)
    except (DatasetError, ValueError) as error:
        args.parser.error(str(error))
    print(format_evaluation(results))
    if args.output:
        write_json(args.output, results)
    return 2 if any(result["error"] for result in results) else 0
