# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json

from d2defense.data import DatasetError
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.data.synth_signs.generate import generate_split


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = generate_split("val", 64, 6, tmp_path_factory.mktemp("cache"))
    return load_coco_json(str(folder.json_file), str(folder.image_root))


def test_order_and_place_do_not_matter(records, tmp_path):
    moved = copy.deepcopy(records)[::-1]
    for position, record in enumerate(moved):
        copied = tmp_path / f"other_{position}.png"
        shutil.copy(record["file_name"], copied)
        record["file_name"], record["image_id"] = str(copied), position
        record["annotations"].reverse()
    assert dataset_fingerprint(moved) == dataset_fingerprint(records)
    assert len(dataset_fingerprint(records)) == 64


def test_every_content_matters(records, tmp_path):
    reference = dataset_fingerprint(records)
    label, box, fewer, pixels = (copy.deepcopy(records) for _ in range(4))
    label[2]["annotations"][0]["category_id"] += 1
    box[2]["annotations"][0]["bbox"][0] += 0.01
    image = tmp_path / "image.png"
    image.write_bytes(Path(records[0]["file_name"]).read_bytes() + b"x")
    pixels[0]["file_name"] = str(image)
    for changed in (label, box, fewer[:-1], pixels):
        assert dataset_fingerprint(changed) != reference


def test_an_annotation_cannot_wander_to_another_image(records):
    swapped = copy.deepcopy(records)
    swapped[0]["annotations"], swapped[1]["annotations"] = (
        swapped[1]["annotations"],
        swapped[0]["annotations"],
    )
    assert dataset_fingerprint(swapped) != dataset_fingerprint(records)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.png: image cannot be read"):
        dataset_fingerprint([{"file_name": str(tmp_path / "gone.png"), "annotations": []}])


def test_masks_and_arrays_have_one_fingerprint_however_they_are_held(records):
    rle, text = (copy.deepcopy(records[:1]) for _ in range(2))
    rle[0]["annotations"][0]["segmentation"] = {"size": [64, 64], "counts": b"04Y"}
    rle[0]["annotations"][0]["bbox"] = np.array([1.0, 2.0, 3.0, 4.0])
    text[0]["annotations"][0]["segmentation"] = {"counts": "04Y", "size": [64, 64]}
    text[0]["annotations"][0]["bbox"] = [1.0, 2.0, 3.0, 4.0]
    assert dataset_fingerprint(rle) == dataset_fingerprint(text)
