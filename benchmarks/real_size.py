# SPDX-License-Identifier: Apache-2.0
"""Scan standard detectors at their own size, as a user does, and say what it takes.

Each detector of Detectron2's model zoo named below gets random weights and a folder of its own, and
``d2defense scan`` goes over it with its defaults. The table says the seconds, the largest memory of
the confined process and its server, the batch, and the verdict.

    python benchmarks/real_size.py --dataset-json instances_val2017.json --image-root val2017/
    python benchmarks/real_size.py mask_rcnn_R_50_FPN --images 4 --dataset-json ... --image-root ...

Random weights find nothing, so no verdict but "uncertain" can come of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.isolation.limits import usage
from d2defense.text import duration

#: Name of the row, and the config: of the model zoo, or below this project's.
DETECTORS = {
    "faster_rcnn_R_50_C4": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml",
    "faster_rcnn_R_50_FPN": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "faster_rcnn_R_101_FPN": "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
    "mask_rcnn_R_50_FPN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "cascade_mask_rcnn_R_50_FPN": "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
    "double_head_rcnn_R_50_FPN": "configs/COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml",
    "keypoint_rcnn_R_50_FPN": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
}
_INTERVAL = 0.2


def detector_config(name: str) -> CfgNode:
    """The configuration of one of :data:`DETECTORS`, on the CPU."""
    path = DETECTORS[name]
    if path.startswith("configs/"):
        cfg = get_d2defense_cfg()
        merge_config_file(cfg, config_root() / path.removeprefix("configs/"))
    else:
        cfg = model_zoo.get_config(path)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def make_checkpoint(name: str, folder: Path) -> None:
    """A Detectron2 output folder of a detector with random weights."""
    cfg = detector_config(name)
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")


def scan(folder: Path, output: Path, arguments: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Scan a checkpoint in a process of its own; its result, and the most memory it held."""
    command = [sys.executable, "-m", "d2defense.cli.program", "scan", str(folder)]
    command += ["--search", "off"]
    command += ["--output", str(output), "--no-figures", *arguments]
    process = subprocess.Popen(command)
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_INTERVAL):
            taken = sum(usage(pid).memory_bytes for pid in descendants(process.pid))
            peak = max(peak, taken)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    ended.set()
    watcher.join()
    with open(output / folder.name / "result.json", encoding="utf-8") as stream:
        return json.load(stream), peak


def descendants(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def main() -> None:
    """Scan every detector and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="*", metavar="DETECTOR", help=", ".join(DETECTORS))
    parser.add_argument("--dataset-json", required=True, metavar="FILE", help="of the images")
    parser.add_argument("--image-root", required=True, metavar="DIR", help="the images")
    parser.add_argument("--images", type=int, default=16, help="how many (%(default)s)")
    args, more = parser.parse_known_args()
    unknown = set(args.detectors) - set(DETECTORS)
    if unknown:
        parser.error(f"no detector {', '.join(sorted(unknown))}; there are {', '.join(DETECTORS)}")
    options = ["--dataset-json", args.dataset_json, "--image-root", args.image_root]
    options += ["--max-images", str(args.images), *more]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.detectors or DETECTORS:
            folder = Path(scratch) / name
            make_checkpoint(name, folder)
            start = time.perf_counter()
            result, peak = scan(folder, Path(scratch) / "results", options)
            seconds = time.perf_counter() - start
            timing = result["timing"] or {}
            rate = timing.get("images_per_second")
            rows.append(
                {
                    "detector": name,
                    "whole scan": duration(seconds),
                    "s an image and pass": f"{1 / rate:.2f}" if rate else "-",
                    "most memory": f"{peak / (1 << 30):.1f} GiB",
                    "images at a time": timing.get("batch_size", "-"),
                    "verdict": result["error"] or result["verdict"],
                }
            )
            print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
            (folder / "model_final.pth").unlink()
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\n{args.images} images, {len(os.sched_getaffinity(0))} processors.")


if __name__ == "__main__":
    main()
