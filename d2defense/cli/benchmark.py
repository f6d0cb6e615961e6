# SPDX-License-Identifier: Apache-2.0
"""Run methods side by side on a zoo of detectors, and make a leaderboard of what they say.

    d2defense benchmark run --task detect --zoo runs/zoo/tiny --results runs/results
    d2defense benchmark run --task detect --methods search mm_bd --zoo runs/zoo/tiny \\
        --results runs/results --budget 60
    d2defense benchmark run --task detect --methods bank search scan --zoo runs/zoo/tiny \\
        --results runs/results --num-images 10 25 50 100
    d2defense benchmark run --task repair --methods unlearn --zoo runs/zoo/tiny \\
        --results runs/results --num-images 200 10 --labels none --later-steps 500
    d2defense benchmark report --results runs/results --output runs/leaderboard

Each measurement is a row of RESULTS/TASK/METHOD.jsonl. A cell that is there is not measured again,
so a run that was killed goes on when the same command is given again; a method that fails leaves a
row with the reason, and the rest goes on. With --only and --methods, one command measures a cell
whose row was deleted.

Exit codes: 0 done; 2 a method failed, or wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_part_group, configure_logging, silence_developer_notices

NAME = "benchmark"
HELP = "compare methods on a zoo of detectors, and make a leaderboard"

_FAILED = 2
# Specimens that serve as references and are in every installation.
_REFERENCES = ("clean_0", "clean_1", "clean_2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    silence_developer_notices()  # of what the parts import
    from d2defense.registry import DETECTION_REGISTRY, TASK_REGISTRY

    parser.add_argument("action", choices=("run", "report"), help="measure, or show the results")
    parser.add_argument(
        "--results", required=True, type=Path, metavar="DIR", help="folder of the rows"
    )
    run = parser.add_argument_group("what is run")
    run.add_argument(
        "--task", choices=list(TASK_REGISTRY.choices()), default="detect", help="(%(default)s)"
    )
    run.add_argument(
        "--methods", nargs="+", default=[], metavar="NAME", help="of the task (default: all)"
    )
    run.add_argument(
        "--zoo",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of a zoo, or of output folders with their provenance.json; repeatable"
        " (default: the specimens)",
    )
    run.add_argument(
        "--only", default="", metavar="PATTERN", help="detectors whose name matches, as in a shell"
    )
    run.add_argument("--limit", type=int, metavar="N", help="the first N of them")
    run.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="that a method of detect may take for a detector, if it can end early: it says what it"
        " has by then, or fails",
    )
    run.add_argument(
        "--num-images",
        type=int,
        nargs="+",
        metavar="N",
        help="of the defender's images that methods are given, one run each (100; repair: all)",
    )
    run.add_argument(
        "--defender",
        default="synth_signs_defender",
        metavar="NAME",
        help="dataset that methods may use (%(default)s)",
    )
    run.add_argument(
        "--test",
        default="synth_signs_val",
        metavar="NAME",
        help="dataset that repairs and screening are measured on (%(default)s)",
    )
    run.add_argument(
        "--references",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="detectors held to be clean (default: the clean specimens)",
    )
    run.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the methods (%(default)s)"
    )
    run.add_argument("--device", default="cpu", metavar="DEVICE", help="of models (%(default)s)")
    run.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="detectors at a time, if several each in a process of one thread (%(default)s)",
    )
    run.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a Ray cluster that measures; its machines share zoo, datasets and results",
    )
    repair = parser.add_argument_group("how repair is run")
    repair.add_argument(
        "--labels",
        choices=("given", "none"),
        default="given",
        help="none: repair by what the detector itself says of the images (%(default)s)",
    )
    repair.add_argument(
        "--num-test-images",
        type=int,
        default=0,
        metavar="N",
        help="measure on the first N images of --test (all)",
    )
    repair.add_argument(
        "--later-steps",
        type=int,
        default=0,
        metavar="N",
        help="then train so many steps further, plainly, and measure again (%(default)s)",
    )
    repair.add_argument(
        "--further",
        default="synth_signs_train",
        metavar="NAME",
        help="dataset of that training (%(default)s)",
    )
    repair.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="settings of the removal methods, which makes them other lines of the tables",
    )
    report = parser.add_argument_group("what is shown")
    report.add_argument("--output", type=Path, metavar="DIR", help="gets the report")
    report.add_argument(
        "--sequestered-labels",
        type=Path,
        metavar="FILE",
        help="labels of sequestered detectors, as `zoo export` writes them",
    )
    report.add_argument(
        "--sequestered-only",
        action="store_true",
        help="count only detectors that nothing was tuned on",
    )
    add_part_group(parser, TASK_REGISTRY, "tasks")
    add_part_group(parser, DETECTION_REGISTRY, "methods of detect")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measure, or show."""
    configure_logging(quiet=True)
    return _report(args) if args.action == "report" else _run(args)


def _run(args: argparse.Namespace) -> int:
    from d2defense.benchmark.running import run_benchmark
    from d2defense.benchmark.tasks.base import TaskOptions
    from d2defense.checkpoint import find_checkpoints
    from d2defense.checkpoint.specimens import specimens_root
    from d2defense.data import DatasetSource
    from d2defense.detection import ScanImages, ScanSettings
    from d2defense.registry import TASK_REGISTRY
    from d2defense.study.results import ResultStore

    counts = args.num_images or [TASK_REGISTRY.get(args.task).usual_images]
    if min(args.num_images or [1]) < 1 or (args.limit is not None and args.limit < 1):
        args.parser.error("--num-images and --limit must be at least 1")
    if args.workers < 1:
        args.parser.error("--workers must be at least 1")
    if args.budget is not None and not args.budget > 0:
        args.parser.error("--budget must be more than 0")
    if min(args.num_test_images, args.later_steps) < 0:
        args.parser.error("--num-test-images and --later-steps must be at least 0")
    defender, summaries = DatasetSource(args.defender), []
    try:
        paths = args.references or [specimens_root() / name for name in _REFERENCES]
        references = find_checkpoints([path.resolve() for path in paths], only_final=True)
        for source in references:
            if source.error:
                raise source.error
        for count in counts:
            images = ScanImages.load(defender, ScanSettings(max_images=count, seed=args.seed))
            options = TaskOptions(
                images=images,
                defender=defender,
                test=DatasetSource(args.test),
                references=tuple(references),
                budget=args.budget,
                seed=args.seed,
                device=args.device,
                work=args.results.resolve() / "work",
                has_labels=args.labels == "given",
                overrides=tuple(args.opts),
                test_images=args.num_test_images,
                later_steps=args.later_steps,
                further=DatasetSource(args.further),
            )
            summaries.append(
                run_benchmark(
                    args.task,
                    args.methods,
                    # Machines of a cluster work in other folders.
                    [path.resolve() for path in args.zoo or [specimens_root()]],
                    ResultStore(args.results),
                    options,
                    args.only,
                    args.limit,
                    args.workers,
                    args.ray_address,
                )
            )
    except ValueError as error:  # also of datasets, results, zoos and references
        args.parser.error(str(error))
    failed = sum(len(each.failed) for each in summaries)
    print(
        f"{sum(each.measured for each in summaries)} measured,"
        f" {sum(each.kept for each in summaries)} were there, {failed} failed;"
        f" rows in {args.results}"
    )
    return _FAILED if failed else 0


def _report(args: argparse.Namespace) -> int:
    from d2defense.benchmark.leaderboard import write_leaderboard

    if args.output is None:
        args.parser.error("report needs --output")
    try:
        written = write_leaderboard(
            args.results, args.output, args.sequestered_labels, args.sequestered_only
        )
    except ValueError as error:  # also of results and labels
        args.parser.error(str(error))
    for path in written:
        print(path)
    return 0
