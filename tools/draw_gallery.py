#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw every shipped attack on one image: docs/images/attacks.png.

    python tools/draw_gallery.py
    python tools/draw_gallery.py --image 7 --output gallery.png

What is drawn is what `evaluate` puts on test images: the trigger of each file of
configs/SynthSigns/attacks, where the effect of it has its places.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from matplotlib.figure import Figure

from d2defense.attacks import build_effect, class_names, image_seed
from d2defense.cli.ending import run_to_end
from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.data import ensure_dataset
from d2defense.files import write_bytes
from d2defense.triggers import build_trigger

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 6
# Pixels of synth_signs are few: each is drawn this many wide and high.
SCALE = 3


def attack_configs() -> list[Path]:
    """The files of the shipped attacks, in alphabetical order."""
    folder = config_root() / "SynthSigns" / "attacks"
    return [path for path in sorted(folder.glob("*.yaml")) if not path.stem.startswith("Base")]


def triggered_image(cfg: CfgNode, dataset: str, index: int) -> np.ndarray:
    """An image of a registered dataset with the trigger of ``ATTACK``, uint8 (H, W, 3), RGB."""
    record = DatasetCatalog.get(dataset)[index]
    effect = build_effect(cfg, class_names([dataset]))
    seed = image_seed(record["file_name"])
    rng = np.random.default_rng([cfg.ATTACK.SEED, seed])
    size = record["height"], record["width"]
    places = torch.as_tensor(effect.places(record, size, rng), dtype=torch.float32).reshape(-1, 4)
    pixels = torch.from_numpy(read_image(record["file_name"], "RGB").transpose(2, 0, 1).copy())
    stamped = build_trigger(cfg).apply(pixels[None], [size], [places], [seed], "RGB")[0]
    return stamped.permute(1, 2, 0).numpy()


def draw(dataset: str, index: int) -> bytes:
    """The gallery as PNG: the image as it is, and under each attack."""
    ensure_dataset(dataset)
    pictures = {"no trigger": read_image(DatasetCatalog.get(dataset)[index]["file_name"], "RGB")}
    for path in attack_configs():
        cfg = get_d2defense_cfg()
        merge_config_file(cfg, path)
        pictures[path.stem.replace("_", " ")] = triggered_image(cfg, dataset, index)
    rows = -(-len(pictures) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * 2.4, rows * 2.7), layout="constrained")
    for axes in figure.subplots(rows, COLUMNS).flat:
        axes.set_axis_off()
    for axes, (title, pixels) in zip(figure.axes, pictures.items(), strict=False):
        axes.imshow(pixels.repeat(SCALE, 0).repeat(SCALE, 1), interpolation="nearest")
        axes.set_title(title, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()


def main() -> int:
    """Draw and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="synth_signs_val", help="(default: %(default)s)")
    parser.add_argument("--image", type=int, default=0, metavar="N", help="number of the image")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "images" / "attacks.png", metavar="FILE"
    )
    args = parser.parse_args()
    write_bytes(args.output, draw(args.dataset, args.image))
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
