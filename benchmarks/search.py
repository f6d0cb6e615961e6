# SPDX-License-Identifier: Apache-2.0
"""What a search costs: by level, by arm, by image size, and against ODSCAN's published time.

    python benchmarks/search.py d2defense/assets/specimens/backdoored_0 \\
        --reference d2defense/assets/specimens/clean_1 --dataset synth_signs_defender

ODSCAN (IEEE S&P 2024, section 6) takes 430.8 s a model, on a GPU, for SSD, Faster R-CNN and DETR at
their usual sizes; the tiny detector here runs on a CPU, so the ratio is of whole procedures, not of
equal work.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from d2defense.checkpoint import find_checkpoints
from d2defense.cli.arguments import add_common_arguments, add_dataset_arguments, dataset_source
from d2defense.cli.settings import add_settings_arguments, settings_config
from d2defense.detection import CleanImage, ScanImages, ScanSettings, open_subject
from d2defense.detection.scale import LogitScale
from d2defense.detection.search import (
    LEVELS,
    SearchSettings,
    divide,
    names_of_classes,
    search_detector,
)
from d2defense.detection.search.arms import Arm, all_goals, starts
from d2defense.detection.search.optimise import ArmState
from d2defense.files import write_text
from d2defense.modeling import number_of_classes

ODSCAN_SECONDS = 430.8
_BATCH = 8
_TIMED_STEPS = 3


def scaled(image: CleanImage, factor: int) -> CleanImage:
    """The image and its boxes, so many times as large."""
    pixels = F.interpolate(image.image[None].float(), scale_factor=factor, mode="bilinear")[0]
    return replace(image, image=pixels.byte(), boxes=image.boxes * factor)


def seconds_a_step(model: nn.Module, images: list[CleanImage], arm: Arm, fmt: str) -> float:
    """Median time of a step of an arm, after one that warms up."""
    state, scale = ArmState.begin(arm, model.device), LogitScale((0.0, 1.0), (0.0, 1.0))
    times = []
    for step in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        state.step(model, images, scale, fmt, step)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    """Time searches and steps, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=["fast", "standard"])
    parser.add_argument("--factors", nargs="+", type=int, default=[1, 2, 4], help="of image sizes")
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[torch.get_num_threads()], help="of a search"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="Markdown")
    add_settings_arguments(parser)
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args()
    settings = ScanSettings.from_config(settings_config(args, parser))
    images = ScanImages.load(dataset_source(args, parser), settings)
    sources = find_checkpoints([args.checkpoint, args.reference], only_final=True)
    for source in sources:
        if source.error:
            raise SystemExit(str(source.error))
    (suspect, seen, cfg), (reference, _, _) = (
        open_subject(each, images, settings, args.device) for each in sources
    )
    names = names_of_classes(number_of_classes(cfg), images.class_names)
    loaded = [seen[index] for index in range(len(seen))]
    tuning, held_out = divide(loaded, settings.seed)
    rows = []
    for level, threads in itertools.product(args.levels, args.threads):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        outcome = search_detector(
            suspect,
            {"reference": reference},
            tuning,
            held_out,
            names,
            SearchSettings(level),
            cfg.INPUT.FORMAT,
        )
        seconds = time.perf_counter() - start
        steps, arms = LEVELS[level].total_steps(names), len(outcome.arms)
        rows.append(
            (level, threads, steps, arms, f"{seconds:.0f} s", f"{seconds / ODSCAN_SECONDS:.2f}")
        )
    headers = ("level", "threads", "steps", "arms measured", "time", "of ODSCAN's 430.8 s")
    parts = [tabulate(rows, headers, tablefmt="github")]
    suspect.requires_grad_(False)
    rows = []
    goals = {goal.kind: goal for goal in all_goals(names)}
    for goal in goals.values():
        for trigger in starts(goal.placement):
            arm = Arm(goal, trigger)
            times = [
                seconds_a_step(
                    suspect, [scaled(each, k) for each in tuning[:_BATCH]], arm, cfg.INPUT.FORMAT
                )
                for k in args.factors
            ]
            rows.append(
                (goal.effect.name, goal.placement, trigger.name, *(f"{t:.3f} s" for t in times))
            )
    width = tuning[0].image.shape[2]
    sizes = [f"{width * factor} px" for factor in args.factors]
    headers = ("effect", "placement", "trigger", *sizes)
    parts.append(f"A step of {_BATCH} images, by their width:")
    parts.append(tabulate(rows, headers, tablefmt="github"))
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.output:
        write_text(args.output, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
