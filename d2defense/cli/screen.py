# SPDX-License-Identifier: Apache-2.0
"""Say of each image whether it carries a trigger, and where.

Fits a screening method on clean images, which need no labels, and then looks at a folder of images
or a video. Of each image one line goes to images.jsonl and images.csv as soon as it is known;
report.html shows the suspicious ones.

    d2defense screen model_dir/ --images incoming/ --clean clean_images/ --output runs/screen
    d2defense screen model_dir/ --images camera.mp4 --clean clean_images/ --output runs/screen
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    add_common_arguments,
    add_confinement_arguments,
    add_part_group,
    configure_logging,
    defense_config,
)

if TYPE_CHECKING:
    from d2defense.checkpoint import CheckpointSource
    from d2defense.workflows.scan import RunOptions
    from d2defense.workflows.screening import ScreenSummary

NAME = "screen"
HELP = "say of each image whether it carries a trigger, and where"
#: A pipeline must tell wrong usage from a screening that failed.
USAGE_EXIT_CODE = 4
#: Its exit code 1 says that something was found.
GIVES_VERDICT = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from d2defense.registry import SCREENING_REGISTRY

    parser.epilog = (
        "exit codes: 0 no image is suspicious; 1 one is; 2 an image, or the checkpoint, could not "
        "be read or judged; 3 there was nothing to screen; 4 wrong usage"
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="Detectron2 output folder, or weights file with config.yaml beside it",
    )
    parser.add_argument(
        "--images",
        required=True,
        metavar="DIR|VIDEO|NAME",
        help="what is screened: a folder, a video, or the folder of a registered dataset",
    )
    parser.add_argument(
        "--clean",
        required=True,
        metavar="DIR|NAME",
        help="folder of clean images, or a registered dataset; at least 1 / rate - 1 of them, none "
        "that the detector was trained on",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="results go here")
    group = add_part_group(parser, SCREENING_REGISTRY, "how an image is looked at")
    group.add_argument(
        "--method",
        choices=SCREENING_REGISTRY.choices(),
        metavar="NAME",
        help="name of a screening method (inconsistency)",
    )
    group.add_argument(
        "--false-alarm-rate",
        type=float,
        metavar="RATE",
        help="share of clean images that may be called suspicious (0.01)",
    )
    group.add_argument(
        "--max-clean", type=int, default=500, metavar="N", help="clean images at most (%(default)s)"
    )
    group.add_argument(
        "--trigger",
        type=Path,
        metavar="FILE",
        help="trigger.yaml that a scan has left, for the method found_trigger",
    )
    group = parser.add_argument_group("how to carry it out")
    add_confinement_arguments(group)
    group.add_argument("--quiet", action="store_true", help="print no summary and no progress")
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Screen, print the summary, and return the exit code."""
    from d2defense.isolation import Limits, parse_size
    from d2defense.workflows.scan import RunOptions
    from d2defense.workflows.screening import ScreenTask, screen_images

    configure_logging(args.quiet)
    parser = args.parser
    cfg = defense_config(args, parser)
    node = cfg.SCREENING
    if args.method:
        node.METHOD = args.method
    if args.false_alarm_rate is not None:
        node.FALSE_ALARM_RATE = args.false_alarm_rate
    bank = args.trigger or (Path(node.FOUND_TRIGGER.FILE) if node.FOUND_TRIGGER.FILE else None)
    if bank is not None:
        node.FOUND_TRIGGER.FILE = str(bank.absolute())
    try:
        limits = Limits(parse_size(args.memory_limit) or None, None)
        clean = _clean_files(args.clean, args.max_clean)
        images = _images(args.images)
        source = _source(args.checkpoint, RunOptions(isolation=args.isolation))
    except ValueError as error:
        parser.error(str(error))
    task = ScreenTask(
        weights=source.weights,
        config=source.config,
        images=images.absolute(),
        clean=tuple(clean),
        screening=node.dump(),
        device=args.device,
        trusted_config=source.trusted_config,
        member=source.member,
        # Beside a bank lie the pictures that it names.
        readable=(bank.absolute().parent,) if bank is not None else (),
    )
    summary = screen_images(task, args.output, limits, args.isolation == "process")
    if summary.error:
        print(f"error: {summary.error}", file=sys.stderr)
    if not args.quiet:
        print(_describe(summary))
        print(f"report: {args.output / 'report.html'}")
    return summary.exit_code


def _source(path: Path, options: RunOptions) -> CheckpointSource:
    """The one checkpoint that a path stands for.

    Raises:
        ValueError: there is none, it cannot be read, or there are several.
    """
    from d2defense.workflows.scan import find_sources

    found = find_sources([path], only_final=True, options=options)
    if len(found.sources) != 1:
        raise ValueError(f"{path}: {len(found.sources)} checkpoints in it; name one")
    (source,) = found.sources
    if source.error is not None:
        raise ValueError(str(source.error))
    return source


def _images(name: str) -> Path:
    """The folder or video that a path, or the name of a registered dataset, stands for.

    Raises:
        ValueError: the dataset's images lie in several folders.
    """
    from detectron2.data import DatasetCatalog

    from d2defense.data import load_dataset

    path = Path(name)
    if path.exists() or name not in DatasetCatalog:
        return path
    folders = {Path(record["file_name"]).parent for record in load_dataset(name)}
    if len(folders) > 1:
        raise ValueError(f"--images: those of {name} lie in {len(folders)} folders; name a folder")
    return folders.pop()


def _clean_files(name: str, limit: int) -> list[Path]:
    """Files of the clean images, at most so many, spread evenly over what there is.

    Raises:
        ValueError: there are none.
    """
    from d2defense.data import load_dataset
    from d2defense.data.image_files import images_below

    if limit < 1:
        raise ValueError("--max-clean must be at least 1")
    folder = Path(name)
    if folder.exists():
        files = images_below(folder)
    else:
        files = [Path(record["file_name"]) for record in load_dataset(name)]
    step = max(1.0, len(files) / limit)
    return [files[int(index * step)].absolute() for index in range(min(limit, len(files)))]


def _describe(summary: ScreenSummary) -> str:
    counts = summary.counts
    return (
        f"{counts.total()} images: {counts['suspicious']} suspicious, "
        f"{counts['unsuspicious']} not, {counts['error']} could not be judged"
    )
