# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from programs import Program
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2defense.data import DatasetError
from d2defense.data.synth_signs import generate
from d2defense.data.synth_signs.generate import generate_split, split_folder
from d2defense.data.synth_signs.scene import render_scene
from d2defense.data.synth_signs.splits import SPLITS, VERSION

COUNT = 12

# Slowed down, so that a second process, or a kill, surely meets the first at work; forked, so
# that they start at once.
SLOW_WRITERS = """
import os, sys, time
from pathlib import Path
from d2defense.data.synth_signs import generate
cache, log, pause, processes = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
render = generate.render_scene
def slowly(*arguments):
    time.sleep(pause)
    log.open("a").write("x")
    return render(*arguments)
generate.render_scene = slowly
children = []
for _ in range(int(processes) - 1):
    children.append(os.fork())
    if not children[-1]:
        break
generate.generate_split("val", 64, COUNT, cache)
assert generate.split_folder("val", 64, COUNT, cache).json_file.is_file()
failed = all(children) and any(os.waitpid(child, 0)[1] for child in children)
os._exit(int(failed))  # tearing forked copies of torch down takes seconds
""".replace("COUNT", str(COUNT))


def start_writers(cache: Path, log: Path, pause: float, processes: int) -> Program:
    script = log.with_name("writers.py")
    script.write_text(SLOW_WRITERS)
    return Program(cache, log, pause, processes, script=script)


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return generate_split("val", 128, 40, tmp_path_factory.mktemp("cache"))


def load(folder) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder.json_file))


def test_the_files_hold_the_scenes(val):
    coco = load(val)
    assert len(coco.imgs) == 40
    for image_id in (1, 17, 40):
        record = coco.imgs[image_id]
        scene = render_scene(VERSION, SPLITS["val"].seed, image_id - 1, 128)
        image = cv2.imread(str(val.image_root / record["file_name"]))
        np.testing.assert_array_equal(image[..., ::-1], scene.image)
        assert (record["height"], record["width"]) == image.shape[:2]
        annotations = coco.imgToAnns[image_id]
        assert [a["category_id"] - 1 for a in annotations] == [
            item.class_index for item in scene.objects
        ]


def test_annotations_agree_with_pycocotools(val):
    coco = load(val)
    assert coco.anns and all(a["iscrowd"] == 0 for a in coco.anns.values())
    for annotation in coco.anns.values():
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0 and max(x + width, y + height) <= 128
        mask = coco.annToMask(annotation)
        assert annotation["area"] == pytest.approx(mask.sum(), rel=0.1, abs=4)
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([x, y, x + width, y + height], tight, atol=1.6)


def test_the_annotations_as_detections_score_full_ap(val):
    coco = load(val)
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes([{**a, "score": 1.0} for a in coco.dataset["annotations"]])
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(coco, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1.0)


def test_splits_share_no_image(tmp_path):
    seen: dict[str, str] = {}
    for split in SPLITS:
        folder = generate_split(split, 64, 40, tmp_path)
        for path in folder.image_root.iterdir():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest not in seen, (split, path.name, seen[digest])
            seen[digest] = split
    assert len(seen) == 40 * len(SPLITS)


def test_processes_at_once_write_one_whole_dataset_and_the_same_as_another(tmp_path):
    cache, log = tmp_path / "shared", tmp_path / "log"
    assert start_writers(cache, log, 0.05, processes=3).end().returncode == 0
    assert log.read_text() == "x" * COUNT  # one rendered, the others waited
    there = split_folder("val", 64, COUNT, cache)
    here = generate_split("val", 64, COUNT, tmp_path / "own")
    assert contents(there.root) == contents(here.root)
    assert len(contents(here.root)) == COUNT + 1


def test_a_writer_killed_half_way_leaves_nothing_that_counts(tmp_path):
    folder = split_folder("val", 64, COUNT, tmp_path)
    writer = start_writers(tmp_path, tmp_path / "log", 0.3, processes=1)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.rglob("*.png"))) < 2:
        assert writer.is_running() and time.monotonic() < deadline
        time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    writer.end()
    assert not folder.root.exists()
    assert list(folder.root.parent.glob(".*.partial"))

    generate_split("val", 64, COUNT, tmp_path)
    assert len(contents(folder.root)) == COUNT + 1
    assert not list(folder.root.parent.glob(".*.partial"))


def test_a_folder_that_lost_a_file_is_written_anew(tmp_path):
    folder = generate_split("val", 64, 5, tmp_path)
    whole = contents(folder.root)
    (folder.image_root / "000003.png").unlink()
    generate_split("val", 64, 5, tmp_path)
    assert contents(folder.root) == whole
    folder.json_file.unlink()
    generate_split("val", 64, 5, tmp_path)
    assert contents(folder.root) == whole


def test_a_whole_folder_is_left_alone(tmp_path, monkeypatch):
    folder = generate_split("val", 64, 5, tmp_path)
    monkeypatch.setattr(generate, "render_scene", None)
    assert generate_split("val", 64, 5, tmp_path) == folder


def test_an_error_half_way_leaves_no_files(tmp_path, monkeypatch):
    def fail(version, seed, index, image_size):
        if index == 2:
            raise KeyboardInterrupt
        return render_scene(version, seed, index, image_size)

    monkeypatch.setattr(generate, "render_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_split("val", 64, 5, tmp_path)
    assert not [path for path in tmp_path.rglob("*.png")]


def test_the_folder_can_be_moved(tmp_path):
    folder = generate_split("val", 64, 3, tmp_path / "a")
    names = {image["file_name"] for image in json.loads(folder.json_file.read_text())["images"]}
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = split_folder("val", 64, 3, tmp_path / "b")
    assert names == {path.name for path in moved.image_root.iterdir()}


@pytest.mark.parametrize(("split", "size"), [("test", 128), ("val", 32), ("val", 2048)])
def test_a_split_or_size_that_does_not_exist_is_refused(tmp_path, split, size):
    with pytest.raises(DatasetError, match=f"{split}|{size}"):
        generate_split(split, size, 1, tmp_path)
    assert not list(tmp_path.iterdir())
