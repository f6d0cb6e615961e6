# SPDX-License-Identifier: Apache-2.0
"""Time scans: against the loop that a user would write, and against the bare network.

Parts, each a table in Markdown:

    speed        this scanner, a loop with DefaultPredictor and hooks, and the bare forward pass of
                 backbone, RPN and box head, on the same images and triggers, in turn
    precision    float32 against bfloat16 with channels-last: time, score and verdict
    triggers     time and memory against the number of triggers, 1 to 256
    race         a bank of 222 and of 4,096 triggers, raced, against all triggers on all images
    verdicts     every specimen by a bank of 222 triggers, raced and not
    checkpoints  time and memory against the number of checkpoints, 1 to 64 copies of one
    workers      two workers against one
    busy         threads that wait as OpenMP has it, and that give way, beside a busy process

    python benchmarks/scan.py
    python benchmarks/scan.py speed --images 64 --repeats 9

Before anything is timed, the contenders' statistics are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, pairwise_iou
from tabulate import tabulate
from torch import Tensor, nn

from d2defense.checkpoint import build_detector
from d2defense.checkpoint.specimens import specimens_root
from d2defense.cli.arguments import silence_developer_notices
from d2defense.data import DatasetSource
from d2defense.detection import (
    CleanImage,
    ScanSettings,
    default_bank,
    inspect_detector,
    load_bank,
    load_calibration,
    load_clean_images,
    sample_records,
    stamped,
    survey_detector,
)
from d2defense.detection.bank_race import BankRace, race_rounds
from d2defense.detection.observing import observe_batches
from d2defense.memory import keep_freed_memory
from d2defense.triggers import Patch

DATASET = DatasetSource("synth_signs_defender")
PARTS = ("speed", "precision", "triggers", "race", "verdicts", "checkpoints", "workers", "busy")
# Triggers that are timed on all images, to tell what thousands would cost.
_TIMED = 31


def main() -> int:
    """Run the parts that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--images", type=int, default=32, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--repeats", type=int, default=15, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch")
    parser.add_argument(
        "--clean",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="further clean detectors to calibrate verdicts on",
    )
    parser.add_argument("--one", metavar="JSON", help=argparse.SUPPRESS)
    args = parser.parse_args()
    silence_developer_notices()
    torch.set_num_threads(args.threads)
    # As in the processes of a scan, and for every contender alike.
    keep_freed_memory()
    if args.one:
        print(json.dumps(measure_one(**json.loads(args.one))))
        return 0
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for part in args.parts:
        print(f"\n## {part}\n", flush=True)
        globals()[f"part_{part}"](args)
    return 0


# speed


def part_speed(args: argparse.Namespace) -> None:
    """The scanner, the loop and the bare network on the same work, in turn."""
    model, cfg, images = _specimen(args.images)
    settings = ScanSettings().observation
    settings = type(settings)(**(settings.__dict__ | {"batch_size": args.batch_size}))
    triggers: list[Patch | None] = [None, *default_bank()]
    loop = PredictorLoop(cfg)
    contenders: dict[str, Callable[[], Any]] = {
        "scanner": lambda: scan(model, images, triggers, settings, cfg.INPUT.FORMAT),
        "loop": lambda: loop.scan(images, triggers, cfg.INPUT.FORMAT),
        "bare forward": lambda: bare_forward(model, images, len(triggers), args.batch_size),
    }
    ours = np.array(contenders["scanner"]())
    theirs = np.array(contenders["loop"]())
    difference = float(np.abs(ours - theirs).max())
    if difference > 1e-3:
        raise SystemExit(f"scanner and loop disagree by {difference}: nothing is timed")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for repeat in range(args.repeats):
        # Each goes first in turn: what ran before leaves its traces in the caches.
        for name, run in order[repeat % 3 :] + order[: repeat % 3]:
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    passes = len(images) * len(triggers)
    rows = [
        (
            name,
            f"{statistics.median(times):.2f} s",
            f"{1000 * statistics.median(times) / passes:.2f} ms",
            _ratios(times, seconds["scanner"]),
            _ratios(times, seconds["bare forward"]),
        )
        for name, times in seconds.items()
    ]
    print(
        f"{len(images)} images, {len(triggers)} passes (clean and {len(triggers) - 1} triggers), "
        f"batches of {args.batch_size}, {args.threads} thread(s); medians of {args.repeats}, "
        "ratios within a repetition, quartiles in brackets; "
        f"largest difference of a mean max q between scanner and loop {difference:.1e}\n"
    )
    header = ("contender", "time", "an image", "of the scanner's", "of the bare forward's")
    print(tabulate(rows, header, tablefmt="github"))


def _ratios(times: Sequence[float], of: Sequence[float]) -> str:
    """Median of the ratios within each repetition, and their quartiles."""
    ratios = [one / other for one, other in zip(times, of, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def scan(
    model: nn.Module,
    images: Sequence[CleanImage],
    triggers: Sequence[Patch | None],
    settings: Any,
    image_format: str,
) -> list[float]:
    """Mean max q of the objects under each trigger, by this project's scanner."""
    sums = np.zeros((2, len(triggers)))
    for batch in observe_batches(model, images, triggers, settings, image_format):
        for index, observation in enumerate(batch.observations):
            terms = observation.terms["max_foreground"]
            sums[:, index] += float(terms.numerator.sum()), float(terms.denominator.sum())
    return list(sums[0] / sums[1])


@torch.no_grad()
def bare_forward(
    model: nn.Module, images: Sequence[CleanImage], passes: int, batch_size: int
) -> None:
    """Backbone, RPN and box head in the same batches; nothing is stamped, matched or kept."""
    heads = model.roi_heads
    for start in range(0, len(images), batch_size):
        inputs = [{"image": image.image} for image in images[start : start + batch_size]]
        for _ in range(passes):
            batch = model.preprocess_image(inputs)
            features = model.backbone(batch.tensor)
            proposals, _ = model.proposal_generator(batch, features, None)
            pooled = heads.box_pooler(
                [features[f] for f in heads.box_in_features], [x.proposal_boxes for x in proposals]
            )
            heads.box_predictor(heads.box_head(pooled))


class PredictorLoop:
    """What a user would write: DefaultPredictor with hooks, an image and a trigger at a time."""

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(specimens_root() / "backdoored_0" / "model_final.pth")
        self.predictor = DefaultPredictor(cfg)
        model = self.predictor.model
        model.proposal_generator.register_forward_hook(self._keep_proposals)
        model.roi_heads.box_predictor.register_forward_hook(self._keep_logits)

    def _keep_proposals(self, module: nn.Module, inputs: object, output: tuple) -> None:
        (self.proposals,) = output[0]

    def _keep_logits(self, module: nn.Module, inputs: object, output: tuple) -> None:
        self.logits = output[0]

    def scan(
        self,
        images: Sequence[CleanImage],
        triggers: Sequence[Patch | None],
        image_format: str,
    ) -> list[float]:
        """Mean max q of the objects under each trigger."""
        means = []
        for trigger in triggers:
            values: list[Tensor] = []
            for image in images:
                pixels = image.image.clone()
                if trigger is not None:
                    pixels = stamped(image, trigger, image_format)
                self.predictor(pixels.permute(1, 2, 0).numpy())
                foreground = 1 - self.logits.softmax(dim=1)[:, -1]
                overlaps = pairwise_iou(Boxes(image.boxes), self.proposals.proposal_boxes)
                values += [
                    foreground[row >= 0.5].max() if (row >= 0.5).any() else torch.tensor(0.0)
                    for row in overlaps
                ]
            means.append(float(torch.stack(values).mean()))
        return means


# the parts that run whole scans, each in a process of its own


def part_precision(args: argparse.Namespace) -> None:
    """fp32 against bf16, on every specimen."""
    rows = []
    for folder in sorted(specimens_root().iterdir()):
        by_precision = {
            precision: _measure(args, checkpoint=str(folder), precision=precision)
            for precision in ("fp32", "bf16")
        }
        single, half = by_precision["fp32"], by_precision["bf16"]
        rows.append(
            (
                folder.name,
                f"{single['seconds']:.1f} s",
                f"{half['seconds']:.1f} s",
                f"{single['seconds'] / half['seconds']:.2f}",
                f"{single['score']:.4f}",
                f"{half['score']:.4f}",
                single["verdict"],
                half["verdict"],
            )
        )
    header = (
        "specimen",
        "fp32",
        "bf16",
        "ratio",
        "score",
        "bf16",
        "verdict",
        "bf16",
    )
    print(tabulate(rows, header, tablefmt="github"))


def part_triggers(args: argparse.Namespace) -> None:
    """One specimen under 1 to 256 triggers."""
    rows = []
    for count in (1, 4, 16, 64, 256):
        result = _measure(args, num_triggers=count)
        rows.append(
            (
                count,
                f"{result['seconds']:.1f} s",
                f"{1000 * result['seconds'] / (count + 1) / args.images:.2f} ms",
                f"{result['peak_mib']:.0f} MiB",
            )
        )
    header = ("triggers", "time", "an image and pass", "peak memory")
    print(tabulate(rows, header, tablefmt="github"))


def part_race(args: argparse.Namespace) -> None:
    """Processor time and memory of a race, against what all triggers on all images would take."""
    rows = []
    images = max(args.images, ScanSettings().max_images)
    for count in (222, 4096):
        part = _measure(args, images=images, num_triggers=_TIMED, bank=count)
        full = part["cpu_seconds"] / (_TIMED + 1) * (count + 1)
        raced = _measure(args, images=images, num_triggers=count, bank=count, race=True)
        rows.append(
            (
                count,
                f"{raced['passes']} of {images * (count + 1)}",
                f"{raced['cpu_seconds']:.1f} s",
                f"{full:.0f} s",
                f"1/{full / raced['cpu_seconds']:.1f}",
                f"{part['peak_mib']:.0f} MiB",
                f"{raced['peak_mib']:.0f} MiB",
            )
        )
    print(
        f"{images} images; the whole product is extrapolated from {_TIMED} triggers and the clean "
        "images; processor time\n"
    )
    header = ("triggers", "passes", "raced", "whole", "share", f"memory, {_TIMED}", "memory, raced")
    print(tabulate(rows, header, tablefmt="github"))


def part_verdicts(args: argparse.Namespace) -> None:
    """What is said of each specimen by a bank that is raced, and by one that is not.

    Clean detectors are judged by the others.
    """
    from d2defense.workflows.calibration import calibrate

    bank = load_bank("wide")
    settings = ScanSettings(bank, max_images=args.images)
    specimens = sorted(specimens_root().iterdir())
    clean = [*(each for each in specimens if each.name.startswith("clean")), *args.clean]
    rows = []
    for race in (False, True):
        settings = replace(settings, race=race)
        whole = calibrate(clean, DATASET, settings, 0.01, device="cpu")
        for folder in [*specimens, *args.clean]:
            calibration = whole
            if folder in clean:
                # What it was held against in its own race were the others.
                profiles = [p for p, of in zip(whole.profiles, clean, strict=True) if of != folder]
                calibration = replace(whole, profiles=tuple(profiles))
            model, cfg, images = _specimen(args.images, folder)
            seen = inspect_detector(model, images, settings, calibration, cfg.INPUT.FORMAT)
            verdict = seen.verdict
            rows.append((folder.name, race, verdict.label, verdict.score, verdict.threshold))
            print(*rows[-1], verdict.reason, file=sys.stderr, flush=True)
    whole, raced = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    table = [
        (
            name,
            label,
            f"{score:.3f}",
            f"{limit:.3f}",
            other[2],
            f"{other[3]:.3f}",
            f"{other[4]:.3f}",
        )
        for (name, _, label, score, limit), other in zip(whole, raced, strict=True)
    ]
    print(f"{len(bank)} triggers, {args.images} images, {len(clean)} clean detectors\n")
    header = ("detector", "whole", "score", "threshold", "raced", "score", "threshold")
    print(tabulate(table, header, tablefmt="github"))


def part_checkpoints(args: argparse.Namespace) -> None:
    """1 to 64 copies of a specimen, by the command."""
    rows = []
    for count in (1, 4, 16, 64):
        seconds, peak = _command(args, count)
        rows.append((count, f"{seconds:.1f} s", f"{seconds / count:.2f} s", f"{peak:.0f} MiB"))
    header = ("checkpoints", "time", "each", "peak memory of a process")
    print(tabulate(rows, header, tablefmt="github"))


def part_workers(args: argparse.Namespace) -> None:
    """Two workers against one, on 32 copies."""
    rows = []
    times = {workers: _command(args, 32, "--workers", str(workers))[0] for workers in (1, 2)}
    for workers, seconds in times.items():
        rows.append((workers, f"{seconds:.1f} s", f"{times[1] / seconds:.2f}"))
    print(tabulate(rows, ("workers", "time", "speed-up"), tablefmt="github"))


def part_busy(args: argparse.Namespace) -> None:
    """One specimen by one thread and by one a core, idle and beside a busy process."""
    rows = []
    cores = os.cpu_count() or 1
    for name, threads, policy in (
        ("one thread", 1, {}),
        (f"{cores} threads, as OpenMP has it", cores, {}),
        (f"{cores} threads that give way (default)", cores, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ):
        own = argparse.Namespace(**vars(args) | {"threads": threads})
        cells = []
        for others in (0, 1):
            busy = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)
            ]
            try:
                result = _measure(own, policy)
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            # Five triggers and none.
            cells.append(f"{1000 * result['seconds'] / 6 / args.images:.1f} ms")
        rows.append((name, *cells))
    header = ("an image and pass", "idle", "beside one busy process")
    print(tabulate(rows, header, tablefmt="github"))


def measure_one(
    images: int,
    batch_size: int,
    checkpoint: str = "",
    num_triggers: int = 5,
    precision: str = "fp32",
    bank: int = 0,
    race: bool = False,
) -> dict[str, Any]:
    """One scan in this process: its time, peak memory and, of a named checkpoint, the verdict."""
    import resource

    from d2defense.statistics import ObservationSettings

    model, cfg, clean = _specimen(images, Path(checkpoint) if checkpoint else None)
    settings = ScanSettings(
        triggers=_large_bank(bank)[:num_triggers] if bank else tuple(_bank(num_triggers)),
        observation=ObservationSettings(batch_size=batch_size, precision=precision),
        max_images=images,
    )
    # Warms up; what a survey keeps of thousands of triggers would count as the race's memory.
    few = replace(settings, triggers=settings.triggers[:_TIMED])
    survey_detector(model, clean[:batch_size], few, cfg.INPUT.FORMAT)
    start, start_cpu = time.perf_counter(), time.process_time()
    if race:
        # Against nothing: what a race costs does not depend on what it is held against.
        run = BankRace(model, clean, settings, cfg.INPUT.FORMAT)
        first = run.first_round()
        run.finish(first, np.zeros_like(first.suspicion))
    else:
        survey_detector(model, clean, settings, cfg.INPUT.FORMAT)
    rounds = race_rounds(num_triggers, images) if race else ()
    result = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "passes": images + sum(each.images * each.triggers for each in rounds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if checkpoint:
        calibration = load_calibration()
        inspection = inspect_detector(model, clean, settings, calibration, cfg.INPUT.FORMAT)
        result |= {"score": inspection.verdict.score, "verdict": inspection.verdict.label}
    return result


def _bank(count: int) -> Iterator[Patch]:
    """The default bank, then grey patches of other shades."""
    bank = default_bank()
    yield from bank[:count]
    for index in range(count - len(bank)):
        yield Patch(f"grey_{index}", color=(index % 256,) * 3)


def _large_bank(count: int) -> tuple[Patch, ...]:
    """The shipped bank of 222 triggers, or patches of 64 colours, 16 sizes and 4 places."""
    if count <= len(wide := load_bank("wide")):
        return wide
    shades, places = (0, 85, 170, 255), ("center", "inside", "random", "background")
    grid = itertools.product(itertools.product(shades, repeat=3), range(16), places)
    return tuple(
        Patch(
            f"{'_'.join(map(str, color))}_{step}_{place}",
            color=color,
            size=(0.05 + 0.01 * step,) * 2,
            placement=place,
        )
        for color, step, place in grid
    )[:count]


def _measure(
    args: argparse.Namespace, variables: Mapping[str, str] | None = None, **what: Any
) -> dict[str, Any]:
    """:func:`measure_one` in a fresh process, so that memory and environment are its own."""
    request = {"images": args.images, "batch_size": args.batch_size} | what
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, __file__, "--threads", str(args.threads), "--one"]
    output = subprocess.run(
        [*command, json.dumps(request)],
        check=True,
        capture_output=True,
        text=True,
        env=inherited | (variables or {}),
    ).stdout
    return json.loads(output.splitlines()[-1])


def _command(args: argparse.Namespace, copies: int, *options: str) -> tuple[float, float]:
    """Wall time and peak memory (MiB) of ``d2defense scan`` over copies of a specimen."""
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(copies):
            shutil.copytree(specimens_root() / "backdoored_0", Path(scratch, "in", f"copy_{index}"))
        command = [
            sys.executable, "-m", "d2defense.cli.program", "scan", f"{scratch}/in", "--quiet",
            "--search", "off",
            "--dataset", DATASET.name, "--max-images", str(args.images), "--no-figures",
            "--output", f"{scratch}/out", *options,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 1:
        raise SystemExit(f"the scan ended with status {os.waitstatus_to_exitcode(status)}, not 1")
    return seconds, usage.ru_maxrss / 1024


def _specimen(
    num_images: int, folder: Path | None = None
) -> tuple[nn.Module, CfgNode, Sequence[CleanImage]]:
    folder = folder or specimens_root() / "backdoored_0"
    weights = min(folder.glob("model_final.*"))
    model, cfg = build_detector(weights, folder / "config.yaml", "cpu")
    images = load_clean_images(sample_records(DATASET.load(), num_images, seed=0), cfg)
    return model, cfg, [images[index] for index in range(len(images))]


if __name__ == "__main__":
    sys.exit(main())
