#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Search clean detectors as if they were suspects: the null that comes with the package.

    python tools/calibrate_search.py            # writes d2defense/assets/search.json, half an hour
    python tools/calibrate_search.py my/clean_0 my/clean_1 my/clean_2 --output null.json

Each detector is searched with the others as references, once a seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

import d2defense
from d2defense.checkpoint import discover
from d2defense.checkpoint.specimens import find_specimen
from d2defense.cli.ending import run_to_end
from d2defense.data import DatasetSource
from d2defense.detection import ScanImages, ScanSettings, open_subject
from d2defense.detection.search import (
    SearchNull,
    SearchSettings,
    arm_key,
    divide,
    names_of_classes,
    search_detector,
)

CLEAN = ("clean_0", "clean_1", "clean_2")
OUTPUT = Path(d2defense.__file__).parent / "assets" / "search.json"
# Any null does: only excesses are read, which do not depend on it.
_NONE = SearchNull("none", ({}, {}, {}))


def main() -> int:
    """Search all, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", type=Path, help="clean detectors (the specimens)")
    parser.add_argument(
        "--dataset", default="synth_signs_defender", help="clean images (%(default)s)"
    )
    parser.add_argument("--search", default="standard", help="how thoroughly (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="searches of each (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write")
    args = parser.parse_args()
    settings = ScanSettings()
    images = ScanImages.load(DatasetSource(args.dataset), settings)
    if args.checkpoints:
        sources = discover(args.checkpoints).sources
    else:
        sources = [find_specimen(name) for name in CLEAN]
    subjects = {each.name: open_subject(each, images, settings) for each in sources}
    searches = []
    for name, subject in tqdm(subjects.items(), desc="clean detectors", unit="detector"):
        seen = [subject.images[index] for index in range(len(subject.images))]
        others = {other: each.model for other, each in subjects.items() if other != name}
        for seed in range(args.seeds):
            tuning, held_out = divide(seen, seed)
            with tqdm(total=1.0, desc=f"{name}, seed {seed}", leave=False) as bar:
                outcome = search_detector(
                    subject.model,
                    others,
                    tuning,
                    held_out,
                    names_of_classes(subject.cfg.MODEL.ROI_HEADS.NUM_CLASSES, images.class_names),
                    SearchSettings(args.search),
                    subject.cfg.INPUT.FORMAT,
                    _NONE,
                    seed=seed,
                    progress=lambda share, bar=bar: bar.update(share - bar.n),
                )
            if outcome.obstacle:
                raise ValueError(f"{name}: {outcome.obstacle}")
            largest: dict[str, float] = {}
            for each in outcome.arms:
                key = arm_key(each.arm)
                largest[key] = max(largest.get(key, each.excess), each.excess)
            searches.append(largest)
    null = SearchNull(f"{', '.join(subjects)}; {args.seeds} seeds each", tuple(searches))
    null.save(args.output)
    print(f"{len(searches)} searches, threshold {null.reference.threshold:.3f}: {args.output}")
    for key in sorted({key for each in searches for key in each}):
        print(f"  {null.baseline(key):6.3f}  {key}")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
