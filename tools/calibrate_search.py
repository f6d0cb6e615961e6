#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Search clean detectors as if they were suspects: a null for images of your own.

    python tools/calibrate_search.py my/clean_a my/clean_b my/clean_c my/clean_d \
        --dataset-json val.json --image-root images/ --search fast \
        --work runs/null --name "four of mine" --output null.json
    d2defense scan incoming/ --dataset-json val.json --image-root images/ --search fast \
        --search-null null.json --reference my/clean_a --output runs/scan

Each detector is searched with the next ones of the list as references, and alone, once a seed; with
--modes twin also against its twin, which is what a scan without references does. A search that is
done stays in the folder of --work: started anew, only what is missing is searched.
With --add-to a null that is there keeps its searches and gets those of further detectors, and it is
printed what these score by it as it was: how often it would have raised a false alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from d2defense.checkpoint import CheckpointSource, find_checkpoints
from d2defense.cli.arguments import add_dataset_arguments, dataset_source
from d2defense.cli.ending import run_to_end
from d2defense.data import DatasetError
from d2defense.detection import ScanImages, ScanSettings, open_subject
from d2defense.detection.search import (
    ALONE,
    MODES,
    REFERENCES,
    TWIN,
    CleanSearch,
    SearchNull,
    SearchNullError,
    SearchSettings,
    divide,
    load_null,
    names_of_classes,
    search_detector,
)
from d2defense.detection.twin import TOO_FEW_IMAGES, TwinSettings, fine_tuned_twin
from d2defense.detection.twin_images import images_for_twin
from d2defense.files import write_json
from d2defense.modeling import number_of_classes

USUAL_MODES = (REFERENCES, ALONE)
# Any null does: only what is shown is read, which does not depend on it.
NONE = SearchNull("none", "", "", (CleanSearch("none", REFERENCES, "", 0, 0, {}),) * 3)


def main() -> int:
    """Search all, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="clean detectors, 3 at least")
    add_dataset_arguments(parser, "synth_signs_defender")
    parser.add_argument(
        "--max-images", type=int, metavar="N", help="draw at most N images; 0 for all (100)"
    )
    parser.add_argument("--search", default="standard", help="how thoroughly (%(default)s)")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=USUAL_MODES, help="(references alone)"
    )
    parser.add_argument("--references", type=int, default=2, help="of each (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="searches of each (%(default)s)")
    parser.add_argument("--work", type=Path, required=True, help="folder of a file a search")
    parser.add_argument("--name", required=True, help="which detectors they are, in words")
    parser.add_argument("--add-to", type=Path, metavar="FILE", help="null of the same images")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    settings = ScanSettings()
    if args.max_images is not None:
        settings = replace(settings, max_images=args.max_images)
    try:
        images = ScanImages.load(dataset_source(args, parser), settings)
    except DatasetError as error:
        parser.error(str(error))
    searches: list[CleanSearch] = []
    before: SearchNull | None = None
    if args.add_to is not None:
        try:
            before = load_null(args.add_to)
        except SearchNullError as error:
            parser.error(str(error))
        if before.fingerprint != images.fingerprint:
            parser.error(f"{args.add_to}: made on other images ({before.dataset})")
        searches += before.searches
    sources = find_checkpoints(args.checkpoints, only_final=True)
    for source in sources:
        if source.error:
            parser.error(str(source.error))
    if len(sources) <= args.references:
        parser.error(f"{len(sources)} detectors are too few for {args.references} references each")
    runs = [
        (index, mode, seed)
        for seed in range(args.seeds)
        for mode in args.modes
        for index in range(len(sources))
    ]
    known = {(each.detector, each.mode, each.level, each.seed) for each in searches}
    for index, mode, seed in runs:
        if (sources[index].name, mode, args.search, seed) in known:
            parser.error(f"{args.add_to}: has {sources[index].name} already")
    for index, mode, seed in tqdm(runs, desc="searches of clean detectors"):
        # The next ones of the list, round its end.
        suspect, *others = [*sources[index:], *sources[:index]][: args.references + 1]
        path = args.work / f"{suspect.name}-{mode}-{args.search}-{seed}.json"
        if not path.exists():
            others = others if mode == REFERENCES else []
            done = search_clean(suspect, others, images, settings, args.search, mode, seed)
            write_json(path, done.as_dict())
        searches.append(CleanSearch.from_dict(json.loads(path.read_text(encoding="utf-8"))))
    if before is not None:
        for each in searches[len(before.searches) :]:
            known = before.of(each.mode, each.level)
            values = {key: shown.counted(each.mode) for key, shown in each.shown.items()}
            print(
                f"{each.detector}, {each.mode}: {known.score(values):.2f} by {args.add_to}, "
                f"threshold {known.reference.threshold:.2f}"
            )
    null = SearchNull(args.name, images.name, images.fingerprint, tuple(searches))
    null.save(args.output)
    for mode in args.modes:
        of_mode = null.of(mode, args.search)
        print(
            f"{mode}: {len(of_mode.searches)} searches, threshold "
            f"{of_mode.reference.threshold:.3f}: {args.output}"
        )
        alone = ", ".join(f"{each:.2f}" for each in of_mode.reference.clean_scores)
        print(f"  scores of these, each by the others: {alone}")
        keys = sorted({key for each in of_mode.searches for key in each})
        print("  excess of clean detectors by the arm that does most:")
        for key in keys:
            print(f"  {of_mode.baseline(key):6.3f}  {key}")
        print("  least excess that is found, of 1 at most:")
        for key in keys:
            print(f"  {of_mode.least_found(key):6.3f}  {key}")
        blind = of_mode.blind_to((key, 0.0) for key in keys)
        if blind:
            print(
                f"  nothing is clean by it: too high of {', '.join(blind)}; search more detectors"
            )
    return 0


def search_clean(
    suspect: CheckpointSource,
    others: Sequence[CheckpointSource],
    images: ScanImages,
    settings: ScanSettings,
    level: str,
    mode: str,
    seed: int,
) -> CleanSearch:
    """What one search of a clean detector shows.

    Raises:
        ValueError: it could not be searched.
    """
    subject = open_subject(suspect, images, settings)
    references = {each.name: open_subject(each, images, settings).model for each in others}
    tuning, held_out = divide([subject.images[i] for i in range(len(subject.images))], seed)
    if mode == TWIN:
        shown = images_for_twin(images, settings, tuning, len(held_out), subject.cfg)
        if not shown:
            raise ValueError(f"{suspect.name}: its twin: {TOO_FEW_IMAGES}")
        twin = TwinSettings(steps=settings.search.twin_steps, seed=seed)
        with tqdm(total=twin.steps, desc=f"{suspect.name}, its twin", leave=False) as bar:
            references = {TWIN: fine_tuned_twin(subject.model, shown, twin, bar.update)}
    names = names_of_classes(number_of_classes(subject.cfg), images.class_names)
    with tqdm(total=1.0, desc=f"{suspect.name}, {mode}", leave=False) as bar:
        outcome = search_detector(
            subject.model,
            references,
            tuning,
            held_out,
            names,
            SearchSettings(level, own_null=NONE),
            subject.cfg.INPUT.FORMAT,
            mode,
            seed=seed,
            progress=lambda share: bar.update(share - bar.n),
        )
    if outcome.obstacle:
        raise ValueError(f"{suspect.name}: {outcome.obstacle}")
    return CleanSearch(suspect.name, mode, level, len(held_out), seed, outcome.shown())


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
