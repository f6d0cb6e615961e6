# SPDX-License-Identifier: Apache-2.0
"""A detector at the size that it is used at, scanned with the defaults, as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from PIL import Image

from d2defense.isolation import Limits

SIZES = [(640, 480), (480, 640), (500, 375), (375, 500)]


def make_photos(folder: Path) -> Path:
    """Coarse noise with two objects an image, some upright and some lying, in COCO's format."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (width, height) in enumerate(SIZES, start=1):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        noise.resize((width, height)).save(folder / f"{number}.jpg")
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "width": width} | {"height": height}
        )
        for x, y in ((40, 60), (200, 180)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + len(annotations) % 80,
                    "bbox": [x, y, 120, 90],
                    "area": 10800,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index + 1, "name": f"c{index}"} for index in range(80)]
    path = folder / "photos.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def make_detector(folder: Path) -> None:
    folder.mkdir()
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())


def children(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, listed.read_text().split())
            except OSError:
                continue
    return found[1:]


def peak_memory(pid: int) -> int:
    """The most bytes that a process has had in memory so far; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.slow
def test_a_standard_detector_is_scanned_within_the_memory_limit(tmp_path):
    make_detector(tmp_path / "detector")
    photos = make_photos(tmp_path)
    command = [sys.executable, "-m", "d2defense.cli.program", "scan", str(tmp_path / "detector")]
    command += ["--output", str(tmp_path / "out"), "--no-figures"]
    command += ["--dataset-json", str(photos), "--image-root", str(tmp_path)]
    command += ["--triggers", "white", "black"]
    process = subprocess.Popen(command)
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.2):
            most = max([most, *map(peak_memory, children(process.pid))])

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    result = json.loads((tmp_path / "out" / "detector" / "result.json").read_text())
    assert result["error"] is None
    assert (code, result["verdict"]) == (1, "uncertain")
    assert "0% of the objects" in result["reason"]
    assert result["timing"]["batch_size"] >= 1
    isolation = result["environment"]["isolation"]
    assert isolation["mode"] == "process"
    assert isolation["memory_limit_bytes"] == Limits().memory_bytes
    assert 1 << 30 < most < Limits().memory_bytes
