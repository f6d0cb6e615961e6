# SPDX-License-Identifier: Apache-2.0
"""What a reference, a twin, and neither say of what a search finds; how many images a twin needs.

    python benchmarks/twin.py d2defense/assets/specimens/{ghost_0,overlay_0,clean_0} \\
        --reference d2defense/assets/specimens/clean_1 --dataset synth_signs_defender

Each detector is searched once, held against the references. Of the arm that does most beyond them,
and of the one that does most at all, the same trigger is then measured on twins fine-tuned on so
many images, none of which are measured on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tabulate import tabulate
from torch import nn

from d2defense.checkpoint import find_checkpoints
from d2defense.cli.arguments import add_common_arguments, add_dataset_arguments, dataset_source
from d2defense.cli.settings import add_settings_arguments, settings_config
from d2defense.detection import CleanImage, ScanImages, ScanSettings, open_subject
from d2defense.detection.search import (
    ALONE,
    ArmResult,
    SearchSettings,
    arm_key,
    divide,
    names_of_classes,
    search_detector,
    shipped_null,
)
from d2defense.detection.search.measure import Measured, success_terms
from d2defense.detection.subject import as_seen
from d2defense.detection.twin import TwinSettings, fine_tuned_twin
from d2defense.files import write_text
from d2defense.modeling import number_of_classes


def success(
    model: nn.Module,
    arm: ArmResult,
    tuning: list[CleanImage],
    held_out: list[CleanImage],
    fmt: str,
    seed: int,
) -> float:
    """Attack success rate of a found trigger on a detector."""
    measured = Measured.of(model, tuning, held_out, fmt)
    (terms,) = success_terms(measured, held_out, arm.trigger, [arm.arm.goal], fmt, seed)
    return terms.ratio()


def main() -> int:
    """Search, make twins, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--reference", type=Path, nargs="+", required=True)
    parser.add_argument("--level", default="fast", help="of the search (%(default)s)")
    parser.add_argument("--images", type=int, nargs="+", default=[20, 50, 150], help="of a twin")
    parser.add_argument("--steps", type=int, nargs="+", default=[TwinSettings().steps])
    parser.add_argument("--output", type=Path, metavar="FILE", help="Markdown")
    add_settings_arguments(parser)
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args()
    settings = ScanSettings.from_config(settings_config(args, parser))
    images = ScanImages.load(dataset_source(args, parser), settings)
    references = {
        source.name: open_subject(source, images, settings, args.device).model
        for source in find_checkpoints(args.reference, only_final=True)
    }
    alone = shipped_null().of(ALONE, args.level)
    rows = []
    for source in find_checkpoints(args.checkpoints, only_final=True):
        model, seen, cfg = open_subject(source, images, settings, args.device)
        fmt, names = cfg.INPUT.FORMAT, images.class_names
        tuning, held_out = divide([seen[index] for index in range(len(seen))], settings.seed)
        outcome = search_detector(
            model,
            {name: each for name, each in references.items() if name != source.name},
            tuning,
            held_out,
            names_of_classes(number_of_classes(cfg), names),
            SearchSettings(args.level),
            fmt,
            seed=settings.seed,
        )
        if outcome.obstacle:
            raise SystemExit(f"{source.name}: {outcome.obstacle}")
        most = max(outcome.arms, key=lambda arm: arm.success - alone.baseline(arm_key(arm.arm)))
        arms = {id(arm): arm for arm in (outcome.arms[0], most)}.values()
        pool = [*tuning, *as_seen(images.further, images, settings, cfg)]
        twins = {}
        for count, steps in ((count, steps) for count in args.images for steps in args.steps):
            start = time.process_time()
            twin = fine_tuned_twin(model, pool[:count], TwinSettings(steps, seed=settings.seed))
            twins[f"twin, {count} images, {steps} steps"] = twin, time.process_time() - start
        for arm in arms:
            rows.append(
                {
                    "detector": source.name,
                    "trigger": arm.arm.name,
                    "suspect": f"{arm.success:.2f}",
                    "references": f"{sum(arm.references) / len(arm.references):.2f}",
                    **{
                        label: f"{success(twin, arm, tuning, held_out, fmt, settings.seed):.2f}"
                        for label, (twin, _) in twins.items()
                    },
                    "clean ones, searched alone": f"{alone.baseline(arm_key(arm.arm)):.2f}",
                }
            )
            print(rows[-1], flush=True)
        times = ", ".join(f"{label}: {seconds:.0f} s" for label, (_, seconds) in twins.items())
        print(f"{source.name}: {times} of a processor", flush=True)
    text = tabulate(rows, "keys", tablefmt="github", disable_numparse=True) + "\n"
    print(text)
    if args.output:
        write_text(args.output, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
