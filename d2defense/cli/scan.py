# SPDX-License-Identifier: Apache-2.0
"""Scan detectors for backdoors.

Stamps plain patches on the objects of clean images and compares what the two modules of the
detector, RPN and box head, say of them. For each checkpoint: a verdict, a score with its
confidence interval, and the modules that carry the backdoor.

    d2defense scan downloads/ --dataset synth_signs_defender --output runs/scan
    d2defense scan model_dir/ --dataset-json val.json --image-root images/ --output runs/scan
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import (
    add_common_arguments,
    add_dataset_arguments,
    configure_logging,
    dataset_source,
    defense_config,
)

NAME = "scan"
HELP = "say which checkpoints are backdoored, how sure it is and which module carries it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = (
        "exit codes: 0 every checkpoint is clean; 1 one is backdoored or uncertain; 2 one could "
        "not be scanned; 3 there was nothing to scan"
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="Detectron2 output folder, .pth with config.yaml beside it, or a folder of these",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="results go here")
    parser.add_argument(
        "--max-images", type=int, metavar="N", help="draw at most N images; 0 for all (100)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the draw of images (0)")
    parser.add_argument(
        "--triggers", nargs="+", metavar="NAME", help="patches of the bank to stamp (all)"
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="made by `d2defense calibrate` (the shipped one)"
    )
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Scan, print the table, and return the exit code."""
    from d2defense.detection import CalibrationError, ScanSettings, load_calibration
    from d2defense.report.results import exit_code
    from d2defense.report.table import format_table
    from d2defense.workflows.scan import scan

    configure_logging()
    dataset = dataset_source(args, args.parser)
    node = (cfg := defense_config(args, args.parser)).DEFENSE
    for key, value in (
        ("MAX_IMAGES", args.max_images),
        ("SEED", args.seed),
        ("TRIGGERS", args.triggers and tuple(args.triggers)),
        ("CALIBRATION", args.calibration),
    ):
        if value is not None:
            node[key] = value
    try:
        settings = ScanSettings.from_config(cfg)
        calibration = load_calibration(node.CALIBRATION)
        calibration.check(settings)
    except (CalibrationError, ValueError) as error:
        args.parser.error(str(error))
    results = scan(args.checkpoints, dataset, args.output, settings, calibration, args.device)
    print(format_table(results))
    print(f"\nreport: {args.output / 'report.html'}")
    return exit_code(results)
