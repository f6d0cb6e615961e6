# SPDX-License-Identifier: Apache-2.0
"""Reproduce the paper's tables and figures, and the studies beyond it.

Trains clean and backdoored detectors, scans them, repairs them in every way that is compared, and
measures them; writes report.md, tables/*.csv and figures/*.png. Every step is kept: a run that was
killed goes on where it was when the same command is given again, and experiments share their
detectors.

    python tools/reproduce.py --profile tiny --output runs/study
    python tools/reproduce.py --profile tiny --output runs/study --only table1,population
    python tools/reproduce.py --quick --output runs/quick

Profiles: tiny, detectors of under a million parameters on the embedded dataset, for two CPU cores
and some hours; small, R-50 at 512 pixels on the embedded dataset, for one GPU; paper, COCO, which
must be where Detectron2 looks for it (DETECTRON2_DATASETS); or a YAML file of your own, which may
build on one of these. --quick is --profile quick: one shipped pair of detectors, nothing is trained
from scratch, a few minutes.

Exit codes: 0 every step has a result; 2 a step failed, or wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_part_group, configure_logging

if TYPE_CHECKING:
    from d2defense.study.profiles import StudyProfile
    from d2defense.study.workplace import Workplace

NAME = "reproduce"
HELP = "reproduce the paper's tables and figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from d2defense.registry import EXPERIMENT_REGISTRY

    parser.add_argument(
        "--profile",
        metavar="NAME|FILE",
        default="tiny",
        help="size of detectors and data: tiny, small, paper, or a YAML file of your own"
        " (%(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="a small part of tiny, in minutes")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="report and steps go here"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="fewer detectors of each kind")
    parser.add_argument("--detectors", metavar="NAME,...", help="fewer kinds of detectors")
    parser.add_argument(
        "--defender-images",
        type=int,
        metavar="N",
        help="size of the defender's set, where the profile draws it from a larger one (paper)",
    )
    parser.add_argument(
        "--photos",
        metavar="DIR",
        help="also study photos of your own: DIR has images/ and annotations/train.json, val.json"
        " (the defender's set) and test.json, in COCO's format",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="steps at a time (one a CPU core)")
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="of a training (all that there are)"
    )
    parser.add_argument(
        "--training-opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="overrides of every training's config",
    )
    parser.add_argument(
        "--repair-opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="overrides of every repair's config, such as REMOVAL.SOLVER.MAX_ITER 500",
    )
    experiments = add_part_group(parser, EXPERIMENT_REGISTRY, "experiments")
    experiments.add_argument(
        "--only", metavar="NAME,...", help="names of experiments (all that the profile has)"
    )
    parser.add_argument("--list", action="store_true", help="print the open steps and do nothing")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="do no step: write the report of the results that are there",
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Do what is open, write the report, and print what the results are held to."""
    from d2defense.study.report import bars_table
    from d2defense.study.reproduction import planned, report_of, reproduce
    from d2defense.workflows.scan.lock import output_lock
    from d2defense.workflows.scan.options import UsageError

    configure_logging()
    profile = _profile(args)
    names = _experiments(args, profile)
    # Under the program's other name, `d2defense reproduce`, its own comes first.
    options = sys.argv[2:] if sys.argv[1:2] == [NAME] else sys.argv[1:]
    command = shlex.join(["python", "tools/reproduce.py", *options])
    try:
        if args.list:
            for step in planned(profile, names, args.output):
                print(step.name)
            return 0
        if args.report_only:
            done = report_of(profile, names, args.output.resolve(), command)
        else:
            workplace, workers = _workplace(args)
            with output_lock(args.output, "study"):
                done = reproduce(profile, names, workplace, workers, command)
    except (UsageError, ValueError) as error:
        args.parser.error(str(error))
    if done.bars:
        print(bars_table(done.bars).markdown())
    print(f"report: {done.report}")
    return 2 if done.failed else 0


def _profile(args: argparse.Namespace) -> StudyProfile:
    from d2defense.study.profiles import (
        ProfileError,
        load_profile,
        with_defender_images,
        with_photos,
    )

    try:
        profile = load_profile("quick" if args.quick else args.profile)
    except ProfileError as error:
        args.parser.error(f"--profile: {error}")
    if args.detectors:
        wanted = args.detectors.split(",")
        known = {kind.name: kind for kind in profile.detectors}
        unknown = [name for name in wanted if name not in known]
        if unknown:
            args.parser.error(f"--detectors: no {', '.join(unknown)}; there are {', '.join(known)}")
        profile = replace(profile, detectors=tuple(known[name] for name in wanted))
    if args.seeds is not None:
        if not 1 <= args.seeds <= len(profile.seeds):
            args.parser.error(f"--seeds: {args.seeds} is not in 1..{len(profile.seeds)}")
        profile = replace(profile, seeds=profile.seeds[: args.seeds])
    if args.defender_images is not None:
        if "aside" not in profile.defender or args.defender_images < 1:
            args.parser.error("--defender-images: this profile has a defender's set of its own")
        profile = with_defender_images(profile, args.defender_images)
    if args.photos:
        folder = Path(args.photos).resolve()
        for name in ("train", "val", "test"):
            if not (folder / "annotations" / f"{name}.json").is_file():
                args.parser.error(f"--photos: {folder}: no annotations/{name}.json")
        if profile.photos is None:
            args.parser.error("--photos: this profile does not say how to train on photos")
        profile = with_photos(profile, str(folder))
    return replace(
        profile,
        training_opts=tuple(args.training_opts),
        repair_opts=tuple(args.repair_opts),
    )


def _experiments(args: argparse.Namespace, profile: StudyProfile) -> list[str]:
    from d2defense.registry import EXPERIMENT_REGISTRY
    from d2defense.study.experiments.base import experiments_in_order

    known = experiments_in_order()
    names = args.only.split(",") if args.only else list(profile.experiments or known)
    unknown = [name for name in names if name not in EXPERIMENT_REGISTRY]
    if unknown:
        args.parser.error(f"--only: no {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _workplace(args: argparse.Namespace) -> tuple[Workplace, int]:
    import torch

    from d2defense.study.workplace import Workplace

    num_gpus = torch.cuda.device_count() if args.num_gpus is None else args.num_gpus
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = args.workers or (1 if num_gpus else cores)
    return Workplace(args.output.resolve(), max(1, cores // workers), num_gpus), workers
