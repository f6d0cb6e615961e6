# SPDX-License-Identifier: Apache-2.0
"""A search at real size: what a crop misses of the whole image, and what a race takes.

    python benchmarks/search_crops.py context d2defense/assets/specimens/clean_0 \\
        --dataset synth_signs_defender
    python benchmarks/search_crops.py context configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml \\
        --dataset-json instances_val2017.json --image-root val2017/ --images 2
    python benchmarks/search_crops.py race configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml \\
        --dataset-json instances_val2017.json --image-root val2017/ --images 8

A config instead of a checkpoint stands for random weights.

``context``: how far what a detector says of an object in a crop is from what it says of it on the
whole image, by the pixels round the object that the crop holds at least: median and 90th percentile
over objects of the differences of the objectness logit, of the margin of foreground and of the
class logits, as shares of their spread over objects. Images below 256 pixels are put together,
three by three.

``race``: processor seconds of a step, of a comparison of arms and of an image's detections, counts
of them in a whole search with one reference, and what follows for its time. Random weights tell no
objects from background, so the scale of the logits is left as it is, which changes no time.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from d2defense.checkpoint import find_checkpoints
from d2defense.cli.arguments import add_common_arguments, add_dataset_arguments, dataset_source
from d2defense.config import get_d2defense_cfg, merge_config_file
from d2defense.detection import (
    CleanImage,
    ScanImages,
    ScanSettings,
    load_clean_images,
    open_subject,
)
from d2defense.detection.images import input_shapes
from d2defense.detection.scale import LogitScale, foreground_margin
from d2defense.detection.search import LEVELS, names_of_classes
from d2defense.detection.search.arms import all_goals
from d2defense.detection.search.crops import cut, is_large
from d2defense.detection.search.measure import detect
from d2defense.detection.search.optimise import ArmState, Loss
from d2defense.detection.search.race import Race, RaceSettings
from d2defense.detection.search.search import SCALED_ON
from d2defense.modeling import RegionOutput, folded, instrument_config

_CONTEXTS = (0, 16, 32, 64, 128)
_STRIDE = 64
_LARGEST_OBJECT, _OBJECTS = 200, 6
_AS_IT_IS = LogitScale((0.0, 1.0), (0.0, 1.0))


def opened(
    what: Path, images: ScanImages, device: str | None
) -> tuple[nn.Module, list[CleanImage], CfgNode]:
    """A detector, the images as it sees them, and its config."""
    if what.suffix == ".yaml":
        cfg = get_d2defense_cfg()
        merge_config_file(cfg, what)
        cfg.MODEL.DEVICE = device or "cpu"
        cfg = instrument_config(cfg)
        torch.manual_seed(0)
        model, seen = build_model(cfg).eval(), load_clean_images(images.records, cfg)
    else:
        (source,) = find_checkpoints([what], only_final=True)
        model, seen, cfg = open_subject(source, images, ScanSettings(), device)
    return model.requires_grad_(False), [seen[index] for index in range(len(seen))], cfg


def three_by_three(images: Sequence[CleanImage]) -> list[CleanImage]:
    """Images of one size, nine in one each."""
    height, width = images[0].image.shape[1:]
    joined = []
    for start in range(0, len(images) - 8, 9):
        nine = images[start : start + 9]
        rows = [torch.cat([each.image for each in nine[k : k + 3]], 2) for k in (0, 3, 6)]
        shifts = [torch.tensor([width * (k % 3), height * (k // 3)] * 2) for k in range(9)]
        boxes = torch.cat([each.boxes + shift for each, shift in zip(nine, shifts, strict=True)])
        joined.append(replace(nine[0], image=torch.cat(rows, 1), boxes=boxes))
    return joined


def differences(model: nn.Module, images: Sequence[CleanImage]) -> str:
    """Crops against whole images, by context."""
    said: dict[int, list[tuple[Tensor, ...]]] = {}
    shares: dict[int, list[float]] = {}
    for image in images:
        sides = image.boxes[:, 2:] - image.boxes[:, :2]
        boxes = image.boxes[(sides.amax(1) <= _LARGEST_OBJECT) & (sides.amin(1) >= 8)][:_OBJECTS]
        said.setdefault(-1, []).append(_numbers(model.judge([{"image": image.image}], [boxes])))
        for context in _CONTEXTS:
            for box in boxes:
                low = ((box[:2] - context) // _STRIDE * _STRIDE).clamp(min=0)
                high = (box[2:] + context).div(_STRIDE).ceil() * _STRIDE
                window = tuple(map(int, (*low, *high)))
                part = cut(image, boxes, box[None], window, 0)
                output = model.judge([{"image": part.image.image}], [part.regions])
                said.setdefault(context, []).append(_numbers(output))
                area = part.image.image[0].numel() / image.image[0].numel()
                shares.setdefault(context, []).append(area)
    whole, *crops = (
        [torch.cat(each) for each in zip(*numbers, strict=True)] for numbers in said.values()
    )
    rows = []
    for context, numbers in zip(_CONTEXTS, crops, strict=True):
        ratios = [(a - b).abs() / b.std(0) for a, b in zip(numbers, whole, strict=True)]
        cells = [f"{each.median():.3f} / {each.quantile(0.9):.3f}" for each in ratios]
        rows.append((context, *cells, sum(shares[context]) / len(shares[context])))
    headers = ("context", "objectness", "foreground", "class logits", "share of the image")
    return f"{len(whole[0])} objects\n\n" + tabulate(rows, headers, "github", floatfmt=".2f")


def _numbers(output: RegionOutput) -> tuple[Tensor, ...]:
    return output.objectness_logits, foreground_margin(output.class_logits), output.class_logits


class Timed(Race):
    """A race that only counts, or takes a few steps of each kind of arm and times them."""

    compared, comparing = 0, 0.0
    dry, classes = True, 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Steps and their seconds, of effects that may be anywhere on a whole image and of others.
        self.taken: Counter[bool] = Counter()
        self.seconds: Counter[bool] = Counter()

    def run_effect(self, names: list[str], effect: str) -> None:
        """The arms of one effect."""
        self.run(names, [goal for goal in all_goals(names) if goal.effect.name == effect])

    def _take_steps(self, state: ArmState, until: int, loss: Loss | None = None) -> None:
        anywhere = state.arm.goal.effect.anywhere
        self.taken[anywhere] += until - state.steps
        if not self.dry:
            start = time.process_time()
            super()._take_steps(state, until, loss)
            self.seconds[anywhere] += time.process_time() - start
        state.steps = until

    def _excess(self, state: ArmState) -> float:
        self.compared += 1
        if self.dry:
            return 0.0
        start = time.process_time()
        value = super()._excess(state)
        self.comparing += time.process_time() - start
        return value

    def _lean(self, arm, tensors) -> Tensor:
        self.compared += 1
        if self.dry:
            return torch.zeros(self.classes)
        start = time.process_time()
        value = super()._lean(arm, tensors)
        self.comparing += time.process_time() - start
        return value


def race_time(
    model: nn.Module, images: Sequence[CleanImage], names: list[str], level: str, fmt: str
) -> str:
    """Counts and seconds of a search with one reference, the detector itself."""
    settings = LEVELS[level]
    if is_large(input_shapes(images)):
        settings = settings.for_large_images()
        model.to(memory_format=torch.channels_last)

    searched = folded(model)

    def race(of: RaceSettings, dry: bool) -> Timed:
        timed = Timed(searched, [(searched, _AS_IT_IS)], images, _AS_IT_IS, of, fmt)
        timed.dry, timed.classes = dry, len(names)
        return timed

    counted = race(settings, True)
    finalists = len(counted.run(names))
    # A few arms of one effect of each kind: what a step costs is the network's, whatever the arm.
    short = replace(settings, scouted=2, scout_steps=2, targets=1, heat_steps=2, steps=2)
    measured = race(replace(short, families=("patch",)), False)
    for effect in ("misclassification", "scene_ghost"):
        measured.run_effect(names, effect)
    start = time.process_time()
    detect(searched, images[:4], None, None, fmt, 0, 0.05)
    image = (time.process_time() - start) / len(images[:4])
    comparison = measured.comparing / measured.compared
    # The clean images that are measured on; scale and operating point.
    clean = 50 + 2 * SCALED_ON
    rows = [
        (name, count, step, count * step)
        for name, anywhere in (("steps", False), ("steps on whole images", True))
        for count in [counted.taken[anywhere]]
        for step in [measured.seconds[anywhere] / measured.taken[anywhere]]
    ]
    rows.append(
        ("comparisons of arms", counted.compared, comparison, counted.compared * comparison)
    )
    rows += [
        (name, count, image, count * image)
        for name, count in (
            ("whole images, of the suspect", clean + 50 * finalists),
            # Of a clean detector hardly an arm is worth holding against it.
            ("of the reference, at least", clean),
        )
    ]
    total = sum(row[-1] for row in rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    kinds = len({goal.kind for goal in all_goals(names)})
    return "\n".join(
        [
            f"{level}: {len(names)} classes, {kinds} effects at placements, {finalists} finalists;",
            f"{settings.batch_size} images a step; {measured.taken.total()} steps and "
            f"{measured.compared} comparisons timed, on {torch.get_num_threads()} thread(s)",
            "",
            tabulate(rows, ("what", "count", "seconds each", "seconds"), "github", floatfmt=".2f"),
            "",
            f"{total:.0f} processor seconds, {total / 60:.0f} minutes of one core; "
            f"{50 * image:.0f} seconds more for every arm that the reference is tried with; "
            f"most memory {peak:.1f} GiB",
        ]
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("context", "race"))
    parser.add_argument("detector", type=Path, help="checkpoint, or config for random weights")
    parser.add_argument("--images", type=int, default=36, help="how many (%(default)s)")
    parser.add_argument("--level", choices=LEVELS, default="standard")
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args()
    images = ScanImages.load(dataset_source(args, parser), ScanSettings(max_images=args.images))
    model, seen, cfg = opened(args.detector, images, args.device)
    if args.part == "context":
        with torch.no_grad():
            small = max(map(max, input_shapes(seen))) < 256
            print(differences(model, three_by_three(seen) if small else seen))
    else:
        names = names_of_classes(cfg.MODEL.ROI_HEADS.NUM_CLASSES, images.class_names)
        print(race_time(model, seen, names, args.level, cfg.INPUT.FORMAT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
