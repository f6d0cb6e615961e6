# SPDX-License-Identifier: Apache-2.0
"""Scan detectors for backdoors.

Stamps plain patches on the objects of clean images and compares what the two modules of the
detector, RPN and box head, say of them. Where that shows nothing, searches for other triggers by
gradient. For each checkpoint: a verdict, a score with its confidence interval, what was found, and
the modules whose outputs the trigger moves most.

    d2defense scan downloads/ --dataset synth_signs_defender --output runs/scan
    d2defense scan model_dir/ --dataset-json val.json --image-root images/ --output runs/scan
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from d2defense.files import clear_place
from d2defense.text import printable

from .arguments import (
    add_common_arguments,
    add_confinement_arguments,
    add_dataset_arguments,
    configure_logging,
    dataset_source,
)
from .ending import FAILED
from .output import STDOUT, json_output, print_json
from .search_options import add_search_arguments, references_of
from .settings import add_decision_arguments, add_settings_arguments, settings_config

if TYPE_CHECKING:
    from d2defense.checkpoint import CheckpointSource, Discovery
    from d2defense.workflows.scan import RunOptions

NAME = "scan"
HELP = "say which checkpoints are backdoored, how sure it is, and what the trigger moves most"
#: A pipeline must tell wrong usage from a scan that failed.
USAGE_EXIT_CODE = 4
#: Its exit code 1 says that something was found.
GIVES_VERDICT = True

# The module that a confined scan runs (`workflows.scan.confined.preload`, which takes seconds to
# import).
_SERVED = "d2defense.workflows.scan.confined"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = (
        "exit codes: 0 every checkpoint is clean; 1 one is backdoored or uncertain; 2 one could "
        "not be scanned; 3 there was nothing to scan; 4 wrong usage, or a protection that is "
        "required is missing"
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="Detectron2 output folder, weights file with config.yaml beside it, or a folder of "
        "these",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="results go here")
    add_settings_arguments(parser)
    add_decision_arguments(parser)
    add_search_arguments(parser, "standard")
    _add_source_arguments(parser)
    _add_output_arguments(parser)
    _add_run_arguments(parser)
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which checkpoints")
    config = group.add_mutually_exclusive_group()
    config.add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="configuration of checkpoints that have none beside them",
    )
    config.add_argument(
        "--model-zoo",
        metavar="NAME",
        help="or one of Detectron2's model zoo, such as "
        "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    )
    group.add_argument(
        "--only-final",
        action="store_true",
        help="scan of each output folder only model_final, else its last checkpoint; what is left "
        "out is listed",
    )
    group.add_argument("--list", action="store_true", help="show what would be scanned, and end")


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        metavar="FILE",
        help="write the summary there; - for standard output, which then holds nothing else",
    )
    group.add_argument(
        "--sarif",
        type=_file,
        metavar="FILE",
        help="write the findings there as SARIF 2.1.0, for code hosts",
    )
    group.add_argument(
        "--junit",
        type=_file,
        metavar="FILE",
        help="write the verdicts there as JUnit XML, for build servers: a test a checkpoint",
    )
    group.add_argument("--quiet", action="store_true", help="print no table and no progress")
    group.add_argument("--no-figures", action="store_true", help="draw nothing, which is faster")


def _file(name: str) -> Path:
    if name == STDOUT:
        raise argparse.ArgumentTypeError("name a file; only --json goes to standard output")
    return Path(name)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to carry it out")
    group.add_argument("--force", action="store_true", help="scan also what was scanned before")
    add_confinement_arguments(group)
    group.add_argument(
        "--require-isolation",
        action="store_true",
        help="scan nothing, and end with exit code 4, where this system lacks a protection",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="of one checkpoint's scan; 0 for none (%(default)g)",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="checkpoints scanned at once (1, or --num-gpus)"
    )
    group.add_argument(
        "--num-gpus",
        type=int,
        default=0,
        metavar="N",
        help="share N GPUs out to the workers; on a cluster, GPUs of one checkpoint",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="scan on an existing Ray cluster, such as auto or ray://head:10001",
    )


def begin(arguments: Sequence[str]) -> None:
    """Let the process that scans are forked from import what it needs while this one does.

    Nothing depends on it: a scan that needs another one, or none, does as if there were none.
    """
    from d2defense.isolation import IsolationError, shared_server

    # Modules of one's own are imported here first; without isolation there is no such process.
    if {"-h", "--help", "none", "--isolation=none"} & set(arguments):
        return
    if any(word.startswith("--im") for word in arguments):
        return
    # Whoever needs it will say why it cannot be started.
    with suppress(IsolationError):
        shared_server((_SERVED,))


def run(args: argparse.Namespace) -> int:
    """Scan, print the table, and return the exit code.

    An error of the system that names a file is wrong usage until the scan begins.
    """
    configure_logging(args.quiet)
    if not args.list and args.output is None:
        args.parser.error("the following arguments are required: --output")
    with json_output(args.json) as stream:
        try:
            return _list(args, stream) if args.list else _scan(args, stream)
        except OSError as error:
            if error.filename is None:
                raise
            args.parser.error(f"{error.filename}: {error.strerror}")


def _scan(args: argparse.Namespace, stream: TextIO) -> int:
    from d2defense.detection import CalibrationError, ScanSettings, calibration_from_config
    from d2defense.report.results import exit_code
    from d2defense.workflows.scan import UsageError, scan

    parser = args.parser
    options = _run_options(args)
    found = _find(args, options)
    dataset = dataset_source(args, parser)
    cfg = settings_config(args, parser)
    try:
        settings = ScanSettings.from_config(cfg)
        calibration = calibration_from_config(cfg, settings)
    except (CalibrationError, ValueError) as error:
        parser.error(str(error))
    references = references_of(args, options)
    for path in _report_files(args):
        # That one cannot be written must not show after hours; and a scan that is cut short must
        # not leave the verdicts of another one.
        clear_place(path)
    try:
        results = scan(
            found,
            dataset,
            args.output,
            settings,
            calibration,
            args.device,
            options,
            references,
        )
        _report(args, results, found, stream)
    except (CalibrationError, UsageError) as error:
        parser.error(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        # By now it is no wrong usage, of which pipelines believe that nothing was scanned.
        what = f"{printable(error.filename)}: {error.strerror}"
        kept = f"what was scanned is kept in {printable(args.output)}"
        print(f"{parser.prog}: error: {what}; {kept}", file=sys.stderr)
        return FAILED
    return exit_code(results)


def _report_files(args: argparse.Namespace) -> list[Path]:
    """The files that are asked for beside those of the output folder."""
    json_file = Path(args.json) if args.json and args.json != STDOUT else None
    return [path for path in (json_file, args.sarif, args.junit) if path is not None]


def _report(
    args: argparse.Namespace, results: list[dict[str, Any]], found: Discovery, stream: TextIO
) -> None:
    """Print the table and write the files that are asked for.

    Raises:
        OSError: one cannot be written.
    """
    from d2defense.report.junit import write_junit
    from d2defense.report.sarif import write_sarif
    from d2defense.report.table import format_table, summarize

    if not args.quiet:
        print(format_table(results, found.left_out))
        print(f"\nreport: {args.output / 'report.html'}")
    if args.json:
        print_json(summarize(results, found.left_out), args.json, stream)
    if args.sarif is not None:
        write_sarif(args.sarif, results, found.left_out)
    if args.junit is not None:
        write_junit(args.junit, results)


def _run_options(args: argparse.Namespace) -> RunOptions:
    from d2defense.isolation import Limits, parse_size
    from d2defense.workflows.scan import RunOptions

    try:
        limits = Limits(parse_size(args.memory_limit) or None, args.time_limit or None)
        return RunOptions(
            isolation=args.isolation,
            require_isolation=args.require_isolation,
            limits=limits,
            workers=max(1, args.num_gpus) if args.workers is None else args.workers,
            num_gpus=args.num_gpus,
            ray_address=args.ray_address,
            force=args.force,
            figures=not args.no_figures,
            progress=False if args.quiet else None,
        )
    except ValueError as error:
        args.parser.error(str(error))


def _list(args: argparse.Namespace, stream: TextIO) -> int:
    """Show what the paths stand for; 0 if there is a checkpoint to scan, else 3."""
    from d2defense.checkpoint import format_sources

    found = _find(args, _run_options(args))
    if args.json:
        content = {
            "checkpoints": [_listed(source) for source in found.sources],
            "left_out": [{"path": str(path), "reason": why} for path, why in found.left_out],
        }
        print_json(content, args.json, stream)
    if args.json != STDOUT and not args.quiet:
        print(format_sources(*found))
    return 0 if any(source.error is None for source in found.sources) else 3


def _find(args: argparse.Namespace, options: RunOptions) -> Discovery:
    from d2defense.workflows.scan import UsageError, find_sources

    try:
        return find_sources(
            args.checkpoints, args.config_file, args.model_zoo, args.only_final, options
        )
    except UsageError as error:
        args.parser.error(str(error))


def _listed(source: CheckpointSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "path": str(source.path),
        "weights": source.weights and str(source.weights),
        "config": source.config and str(source.config),
        "format": source.format,
        "member": source.member,
        "copies": list(source.copies),
        "left_out": list(source.left_out),
        "warnings": list(source.warnings),
        "error": source.error and str(source.error),
    }
