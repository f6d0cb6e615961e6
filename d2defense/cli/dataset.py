# SPDX-License-Identifier: Apache-2.0
"""Generate, check or load datasets, show what is in them, or put a trigger on their images.

Of data of your own, everything that is wrong with the annotations and every image that cannot be
read is listed.

d2defense dataset
d2defense dataset synth_signs_val_512px --contact-sheet sheet.png
d2defense dataset --dataset-json val.json --image-root images/ --contact-sheet sheet.png
d2defense dataset --dataset-json val.json --image-root images/ --split runs/split \
    --defender-images 500
d2defense dataset synth_signs_val --stamp runs/stamped --images 60 \
    --attack configs/SynthSigns/attacks/ghost_patch.yaml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import (
    add_attack_argument,
    add_overrides_argument,
    configure_logging,
    defense_config,
)

if TYPE_CHECKING:
    from d2defense.data.coco import Findings

    Records = list[dict[str, Any]]

NAME = "dataset"
HELP = "generate, check, split or stamp datasets, count their objects and draw a contact sheet"

DEFAULT_SHEET = 15
DEFAULT_NAMES = ("synth_signs_train", "synth_signs_defender", "synth_signs_val")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="registered dataset names; synth_signs_{train,defender,val} come at any size from 64"
        " to 1024 pixels, as in synth_signs_val_320px (default: the three at 128 pixels)",
    )
    parser.add_argument("--dataset-json", metavar="FILE", help="COCO annotations of your own data")
    parser.add_argument("--image-root", metavar="DIR", help="folder of its images")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE.png",
        help="draw the first images of the first dataset with their annotations",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"images on the contact sheet (default: {DEFAULT_SHEET}), or to stamp (all)",
    )
    parser.add_argument(
        "--stamp",
        type=Path,
        metavar="DIR",
        help="write images of the first dataset with the trigger of an attack, as PNG files, and "
        "DIR/places.json, the boxes that bear it on each: what `d2defense screen` should find. "
        "Without --attack or --opts it is the paper's white patch on every object",
    )
    add_attack_argument(parser)
    add_overrides_argument(parser)
    parser.add_argument(
        "--split",
        type=Path,
        metavar="DIR",
        help="set images of --dataset-json aside: writes DIR/defender.json and, with all others, "
        "DIR/rest.json",
    )
    parser.add_argument(
        "--defender-images",
        type=int,
        default=200,
        metavar="N",
        help="images with an object in the defender's set (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the split (default: %(default)s)"
    )
    parser.set_defaults(parser=parser)


def _show(name: str, records: Records) -> None:
    from detectron2.data import MetadataCatalog
    from tabulate import tabulate

    from d2defense.data.summary import count_classes

    metadata = MetadataCatalog.get(name)
    counts = count_classes(records, metadata.thing_classes)
    rows = [(c.name, c.objects, c.images) for c in counts]
    rows.append(("all", sum(c.objects for c in counts), len(records)))
    print(f"{name}: {metadata.json_file}")
    print(tabulate(rows, headers=("class", "objects", "images")), end="\n\n")


def _list_findings(findings: Findings) -> None:
    for finding in findings:
        print(f"{finding.kind.outcome}: {finding}")


def _check_images(records: Records) -> bool:
    """List the images that cannot be used; whether there are none."""
    from d2defense.data.image_files import unusable_images

    unusable = unusable_images(records, decode=False)
    for image in unusable:
        print(f"error: image {image.image_id} cannot be used: {image}")
    return not unusable


def _draw(name: str, records: Records, count: int, path: Path) -> None:
    from detectron2.data import MetadataCatalog

    from d2defense.data.preview import contact_sheet, encode_png
    from d2defense.files import write_bytes

    sheet = contact_sheet(records, MetadataCatalog.get(name).thing_classes, count)
    write_bytes(path, encode_png(sheet))
    print(f"contact sheet: {path}")


def _stamp(name: str, records: Records, args: argparse.Namespace) -> None:
    from itertools import islice

    from tqdm import tqdm

    from d2defense.attacks import build_effect, class_names, write_triggered
    from d2defense.data.image_files import unusable_images
    from d2defense.files import write_json
    from d2defense.triggers import build_trigger

    cfg = defense_config(args, args.parser, args.attack)
    try:
        trigger, effect = build_trigger(cfg), build_effect(cfg, class_names([name]))
    except ValueError as error:
        args.parser.error(str(error))
    unusable = {each.file_name for each in unusable_images(records, decode=False)}
    usable = (record for record in records if record["file_name"] not in unusable)
    stamped = islice(write_triggered(usable, trigger, effect, args.stamp), args.images)
    total = min(args.images or len(records), len(records))
    bar = tqdm(stamped, "stamped", total, unit="image", leave=False, disable=None)
    places = {file: boxes.tolist() for file, boxes in bar}
    write_json(args.stamp / "places.json", places)
    print(f"{len(places)} images with the trigger, {trigger.name} ({effect.name}): {args.stamp}")


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 2 with one line on standard error when a dataset cannot be used.
    """
    from d2defense.data import DatasetError
    from d2defense.data.coco import FindingsError

    if bool(args.dataset_json) != bool(args.image_root):
        args.parser.error("--dataset-json and --image-root go together")
    if args.images is not None and args.images < 1:
        args.parser.error("--images must be at least 1")
    if (args.attack or args.opts) and not args.stamp:
        args.parser.error("--attack and --opts say what --stamp writes: give --stamp DIR")
    if args.split and not args.dataset_json:
        args.parser.error("--split divides your own data: give --dataset-json and --image-root")
    configure_logging()
    try:
        return _run(args)
    except FindingsError as error:
        _list_findings(error.findings)
        print(f"error: {args.dataset_json}: cannot be used", file=sys.stderr)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def _run(args: argparse.Namespace) -> int:
    from detectron2.data import MetadataCatalog

    from d2defense.data import load_dataset
    from d2defense.data.coco import register_coco_dataset
    from d2defense.data.split import split_coco

    own = args.dataset_json
    if own:
        _list_findings(register_coco_dataset(own, own, args.image_root))
    names = [own, *args.names] if own else args.names or DEFAULT_NAMES
    code = 0
    for number, name in enumerate(names):
        # Loaded once: of a large dataset it takes a while.
        records = load_dataset(name)
        if name == own and not _check_images(records):
            print(f"error: {own}: some images cannot be used", file=sys.stderr)
            code = 2
        _show(name, records)
        if args.contact_sheet and number == 0:
            _draw(name, records, args.images or DEFAULT_SHEET, args.contact_sheet)
        if args.stamp and number == 0:
            _stamp(name, records, args)
    if args.split:
        corrected = Path(MetadataCatalog.get(args.dataset_json).json_file)
        files = split_coco(corrected, args.split, args.defender_images, args.seed)
        print("defender's set: {}\nall others: {}".format(*files))
    return code
