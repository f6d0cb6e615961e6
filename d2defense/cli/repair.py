# SPDX-License-Identifier: Apache-2.0
"""Repair a backdoored detector with a small clean set, and say what that changed.

Scans and searches the checkpoint, works on it by a removal method, most of which fine-tune all of
it, scans, searches and measures it again, and prints both sides. What is clean already is left as
it is. The original stays untouched. The output folder is a Detectron2 output folder with
report.html and report.json, which say more. A result is called repaired only if the scan calls it
clean and its AP on clean images has fallen by --max-ap-drop at most.

    d2defense repair downloads/model --dataset synth_signs_defender \\
        --test-dataset synth_signs_val --output runs/repaired
    d2defense repair downloads/model --scan runs/scan/model --dataset-json defender.json \\
        --image-root images/ --output runs/repaired
    d2defense repair downloads/model --images photos/ --labels none --output runs/repaired
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    add_common_arguments,
    add_dataset_arguments,
    add_part_group,
    add_skip_argument,
    configure_logging,
    dataset_source,
    defense_config,
    silence_developer_notices,
)
from .search_options import add_search_arguments, references_of

if TYPE_CHECKING:
    from d2defense.checkpoint import CheckpointSource
    from d2defense.data.source import DatasetSource
    from d2defense.workflows.fine_tuning import FineTuningOptions

NAME = "repair"
HELP = "repair a backdoored checkpoint with a small clean set"
#: Its exit code 1 says that the result is not repaired.
GIVES_VERDICT = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = (
        "exit codes: 0 repaired, or --no-report; 1 not repaired, and why not is said; 2 it could "
        "not be tried"
    )
    silence_developer_notices()  # of what the imports below import
    from d2defense.registry import REMOVAL_REGISTRY
    from d2defense.workflows.evidence import (
        KEEPING_METHOD,
        KNOWING_METHOD,
        SEARCH_LEVEL,
        SEARCHING_METHOD,
    )
    from d2defense.workflows.fine_tuning import DEFAULT_METHOD

    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="output folder or weights file")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new checkpoint")
    parser.add_argument(
        "--scan",
        type=Path,
        metavar="RESULT",
        help="result.json of a scan of this checkpoint, or its folder (scan it first)",
    )
    methods = add_part_group(parser, REMOVAL_REGISTRY, "removal methods")
    methods.add_argument(
        "--method",
        choices=REMOVAL_REGISTRY.choices(),
        metavar="NAME",
        help="name of a removal method (renewal if --modules is given, else what suits the scan: "
        f"{KNOWING_METHOD} where the bank finds it, {SEARCHING_METHOD} where a search finds more, "
        f"{KEEPING_METHOD} where both find it clean, else {DEFAULT_METHOD})",
    )
    methods.add_argument(
        "--modules",
        nargs="+",
        metavar="NAME",
        help="module groups that renewal resets (those whose outputs the trigger moves most, by the"
        " scan)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of reset and training (%(default)s)"
    )
    parser.add_argument(
        "--max-ap-drop",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="AP on clean images may fall by so much, else it is not repaired (%(default)g)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="fine-tune up to N times, each on from the last, until it is repaired (%(default)d)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what the same command has left in --output when it was cut short",
    )
    parser.add_argument(
        "--no-report",
        action="store_true",
        help="fine-tune only: no scans, no measurements; renewal resets what classifies proposals "
        "unless --modules or --scan say otherwise",
    )
    add_search_arguments(parser, SEARCH_LEVEL, with_always=False)
    add_dataset_arguments(parser)
    unlabelled = parser.add_argument_group("clean images without labels, in place of these")
    unlabelled.add_argument(
        "--labels",
        choices=("given", "none"),
        default="given",
        help="none: take what the checkpoint itself detects on them (%(default)s)",
    )
    unlabelled.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of images, with --labels none"
    )
    group = parser.add_argument_group("other images, to scan and measure with")
    group.add_argument(
        "--test-dataset",
        metavar="NAME",
        help="registered dataset without an image of the one above (the one above: says less)",
    )
    group.add_argument("--test-dataset-json", metavar="FILE", help="COCO annotations of your own")
    group.add_argument("--test-image-root", metavar="DIR", help="folder of their images")
    add_skip_argument(parser)
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Repair the checkpoint; 0, 1 if it is not repaired, or 2 after one line on why not."""
    from d2defense.checkpoint import find_checkpoints
    from d2defense.memory import keep_freed_memory

    configure_logging()
    keep_freed_memory()
    _check_options(args)
    given = None if args.images else dataset_source(args, args.parser)
    test = _test_source(args)
    (source, *more) = find_checkpoints([args.checkpoint], only_final=True)
    if more:
        args.parser.error(f"{args.checkpoint}: holds several checkpoints; name one")
    try:
        if source.error:
            raise source.error
        dataset = _defender(args, source, given, test)
        if args.no_report:
            _fine_tune(args, source, dataset)
            return 0
        return _repair(args, source, dataset, test)
    except ValueError as error:
        args.parser.error(str(error))


def _check_options(args: argparse.Namespace) -> None:
    if args.images and args.labels != "none":
        args.parser.error("--images has no labels: say --labels none")
    if args.images and (args.dataset or args.dataset_json):
        args.parser.error("--images takes the place of --dataset and --dataset-json")
    if args.rounds < 1:
        args.parser.error(f"--rounds {args.rounds} is not positive")
    if math.isnan(args.max_ap_drop):
        args.parser.error(f"--max-ap-drop {args.max_ap_drop} is no number of points")


def _defender(
    args: argparse.Namespace,
    source: CheckpointSource,
    given: DatasetSource | None,
    test: DatasetSource | None,
) -> DatasetSource:
    """The images to fine-tune on; labelled by the checkpoint where theirs are not to be used."""
    from detectron2.data import MetadataCatalog

    from d2defense.data.image_files import images_below
    from d2defense.workflows.fine_tuning import require_other_folder
    from d2defense.workflows.pseudo_labels import (
        PSEUDO_LABELS_FILE,
        pseudo_labelled,
        pseudo_labels_of,
    )

    if args.labels == "given":
        return given
    require_other_folder(source, args.output)
    path = args.output / PSEUDO_LABELS_FILE
    if given is not None:
        return pseudo_labelled(source, given, path, args.device)
    names = MetadataCatalog.get(test.ensure()).get("thing_classes", ()) if test else ()
    files = images_below(args.images)
    return pseudo_labels_of(source, files, path, names, args.skip_unusable, args.device)


def _fine_tune(args: argparse.Namespace, source: CheckpointSource, dataset: DatasetSource) -> None:
    from d2defense.detection import ScanSettings
    from d2defense.workflows.evidence import informed, load_evidence
    from d2defense.workflows.fine_tuning import fine_tune

    options = _options(args)
    if args.scan:
        bank = ScanSettings.from_config(defense_config(args, args.parser)).triggers
        options = informed(options, load_evidence(args.scan, source), _chooses_method(args), bank)
    done = fine_tune(source, dataset, args.output, options, args.device, print, args.resume)
    print(f"{done.output_dir}: {options.method} in {done.seconds:.0f} s, {done.batch}")


def _options(args: argparse.Namespace) -> FineTuningOptions:
    from d2defense.workflows.fine_tuning import DEFAULT_METHOD, FineTuningOptions

    method = args.method or ("renewal" if args.modules else DEFAULT_METHOD)
    return FineTuningOptions(args.modules, method, args.seed, args.opts)


def _chooses_method(args: argparse.Namespace) -> bool:
    """Whether what a scan finds decides."""
    return args.method is None and not args.modules


def _repair(
    args: argparse.Namespace,
    source: CheckpointSource,
    dataset: DatasetSource,
    test: DatasetSource | None,
) -> int:
    from d2defense.detection import ScanSettings, calibration_from_config
    from d2defense.triggers import build_trigger
    from d2defense.workflows.evidence import SEARCH_LEVEL
    from d2defense.workflows.repair import RepairTask, format_repair, repair_checkpoint

    cfg = defense_config(args, args.parser)
    # A repair goes by what a search finds, whatever the bank has found.
    cfg.DEFENSE.SEARCH_ALWAYS = True
    if "DEFENSE.SEARCH" not in args.opts:
        cfg.DEFENSE.SEARCH = SEARCH_LEVEL
    for option, key in (("search", "SEARCH"), ("twin", "TWIN"), ("search_null", "SEARCH_NULL")):
        if getattr(args, option) is not None:
            cfg.DEFENSE[key] = getattr(args, option)
    settings = ScanSettings.from_config(cfg)
    task = RepairTask(
        source=source,
        defender=dataset,
        test=test,
        settings=settings,
        calibration=calibration_from_config(cfg, settings),
        trigger=build_trigger(cfg),
        options=_options(args),
        choose_method=_chooses_method(args),
        evidence=args.scan,
        references=references_of(args),
        max_ap_drop=args.max_ap_drop,
        rounds=args.rounds,
        pseudo_labelled=args.labels == "none",
        resume=args.resume,
        device=args.device,
    )
    repaired = repair_checkpoint(task, args.output)
    print(format_repair(repaired.summary))
    print(f"\nreport: {repaired.report}")
    return 0 if repaired.summary["repaired"] else 1


def _test_source(args: argparse.Namespace) -> DatasetSource | None:
    from d2defense.data.source import DatasetSource

    if bool(args.test_dataset_json) != bool(args.test_image_root):
        args.parser.error("--test-dataset-json and --test-image-root go together")
    if args.test_dataset_json:
        json_file = args.test_dataset_json
        return DatasetSource(json_file, json_file, args.test_image_root, args.skip_unusable)
    return DatasetSource(args.test_dataset) if args.test_dataset else None
