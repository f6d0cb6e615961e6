# SPDX-License-Identifier: Apache-2.0
"""Repair a backdoored detector with a small clean labelled set, and say what that changed.

Fine-tunes the whole model with photometric distortion, random flip and random patches on objects
that keep their labels. --method renewal is the paper's targeted renewal fine-tuning instead: it
resets the module groups that a scan names, without patches. The original stays untouched. The
output folder is a Detectron2 output folder with report.html and report.json, which compare the
checkpoint before and after.

    d2defense renew downloads/model --dataset synth_signs_defender \\
        --test-dataset synth_signs_val --output runs/renewed
    d2defense renew downloads/model --scan runs/scan/model --dataset-json defender.json \\
        --image-root images/ --output runs/renewed
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    add_common_arguments,
    add_dataset_arguments,
    configure_logging,
    dataset_source,
    defense_config,
)

if TYPE_CHECKING:
    from d2defense.checkpoint import CheckpointSource
    from d2defense.data.source import DatasetSource
    from d2defense.workflows.renew import RenewalOptions

NAME = "renew"
HELP = "repair a backdoored checkpoint with a small clean set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="output folder or weights file")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new checkpoint")
    parser.add_argument(
        "--modules",
        nargs="+",
        metavar="NAME",
        help="module groups that renewal resets (those that the scan names)",
    )
    parser.add_argument(
        "--scan",
        type=Path,
        metavar="RESULT",
        help="result.json of a scan of this checkpoint, or its folder (scan it first)",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="patch_augmentation (ours), renewal (the paper's), vanilla, reset_all, fine_pruning or"
        " nad (renewal if --modules is given, else patch_augmentation)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--no-report",
        action="store_true",
        help="fine-tune only: no scans, no measurements; renewal resets what classifies proposals "
        "unless --modules or --scan say otherwise",
    )
    add_dataset_arguments(parser)
    group = parser.add_argument_group("other images, to scan and measure with")
    group.add_argument(
        "--test-dataset",
        metavar="NAME",
        help="registered dataset without an image of the one above (the one above: says less)",
    )
    group.add_argument("--test-dataset-json", metavar="FILE", help="COCO annotations of your own")
    group.add_argument("--test-image-root", metavar="DIR", help="folder of their images")
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Renew the checkpoint; 0, or 2 after one line on why it could not be."""
    from d2defense.checkpoint import find_checkpoints
    from d2defense.memory import keep_freed_memory

    configure_logging()
    keep_freed_memory()
    dataset = dataset_source(args, args.parser)
    test = _test_source(args)
    (source, *more) = find_checkpoints([args.checkpoint])
    if more:
        args.parser.error(f"{args.checkpoint}: holds several checkpoints; name one")
    try:
        if source.error:
            raise source.error
        if args.no_report:
            _renew(args, source, dataset)
        else:
            _repair(args, source, dataset, test)
    except ValueError as error:
        args.parser.error(str(error))
    return 0


def _renew(args: argparse.Namespace, source: CheckpointSource, dataset: DatasetSource) -> None:
    from d2defense.workflows.evidence import load_evidence
    from d2defense.workflows.renew import renew

    options = _options(args)
    if options.modules is None and args.scan:
        evidence = load_evidence(args.scan, source)
        options = replace(options, modules=evidence["dominant_modules"] or None)
    renewal = renew(source, dataset, args.output, options, args.device)
    print(f"{renewal.output_dir}: {options.method} in {renewal.seconds:.0f} s")


def _options(args: argparse.Namespace) -> RenewalOptions:
    from d2defense.workflows.renew import DEFAULT_METHOD, RenewalOptions

    method = args.method or ("renewal" if args.modules else DEFAULT_METHOD)
    return RenewalOptions(args.modules, method, args.seed, args.opts)


def _repair(
    args: argparse.Namespace,
    source: CheckpointSource,
    dataset: DatasetSource,
    test: DatasetSource | None,
) -> None:
    from d2defense.attacks import Trigger
    from d2defense.detection import ScanSettings, calibration_from_config
    from d2defense.workflows.repair import format_repair, repair

    cfg = defense_config(args, args.parser)
    settings = ScanSettings.from_config(cfg)
    calibration = calibration_from_config(cfg, settings)
    repaired = repair(
        source,
        dataset,
        test,
        args.output,
        settings,
        calibration,
        Trigger.from_config(cfg),
        _options(args),
        args.scan,
        args.device,
    )
    print(format_repair(repaired.summary))
    print(f"\nreport: {repaired.report}")


def _test_source(args: argparse.Namespace) -> DatasetSource | None:
    from d2defense.data.source import DatasetSource

    if bool(args.test_dataset_json) != bool(args.test_image_root):
        args.parser.error("--test-dataset-json and --test-image-root go together")
    if args.test_dataset_json:
        return DatasetSource(args.test_dataset_json, args.test_dataset_json, args.test_image_root)
    return DatasetSource(args.test_dataset) if args.test_dataset else None
