# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from d2defense.data import DatasetError, load_dataset
from d2defense.data.coco import leave_out_images, register_coco_dataset

NAME = "mine"


@pytest.fixture
def document():
    return {
        "images": [
            {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {
                "id": 1 + index,
                "image_id": image,
                "category_id": category,
                "bbox": [1, 2, 10, 8],
                "area": 80,
                "iscrowd": 0,
            }
            for index, (image, category) in enumerate([(4, 7), (9, 3)])
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("D2DEFENSE_CACHE", str(tmp_path / "cache"))
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 40, 3), np.uint8))
    yield tmp_path
    for catalogue in (DatasetCatalog, MetadataCatalog):
        if NAME in catalogue:
            catalogue.remove(NAME)


def register(folder, document):
    (folder / "annotations.json").write_text(json.dumps(document))
    register_coco_dataset(NAME, folder / "annotations.json", folder)


def test_a_good_dataset_is_registered_and_loads(folder, document):
    register(folder, document)
    assert MetadataCatalog.get(NAME).thing_classes == ["dog", "cat"]
    records = load_dataset(NAME)
    assert [r["annotations"][0]["category_id"] for r in records] == [1, 0]
    register(folder, document)  # again, the same files
    assert load_dataset(NAME) == records


def test_a_changed_file_is_read_anew(folder, document):
    register(folder, document)
    document["annotations"][0]["bbox"] = [1, 2, 3, 4]
    register(folder, document)
    assert load_dataset(NAME)[0]["annotations"][0]["bbox"] == [1, 2, 3, 4]
    document["annotations"][0]["bbox"] = [1, 2, -3, 4]
    with pytest.raises(DatasetError, match="negative"):
        register(folder, document)
    assert NAME not in DatasetCatalog


def test_a_name_cannot_change_its_files(folder, document):
    register(folder, document)
    (folder / "other.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="registered already"):
        register_coco_dataset(NAME, folder / "other.json", folder)


def assert_refused(folder, message, json_file="annotations.json", image_root="."):
    with pytest.raises(DatasetError, match=message) as caught:
        register_coco_dataset(NAME, folder / json_file, folder / image_root)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert NAME not in DatasetCatalog


def test_files_that_are_missing_or_unreadable(folder, document):
    assert_refused(folder, r"absent\.json: annotation file does not exist", "absent.json")
    assert_refused(folder, "cannot be read: Is a directory", ".")
    (folder / "annotations.json").write_text("{")
    assert_refused(folder, r"annotations\.json: not JSON")
    (folder / "annotations.json").write_bytes(b"\xff\xfe\x00")
    assert_refused(folder, r"annotations\.json: not JSON")
    (folder / "annotations.json").write_text(json.dumps(document))
    assert_refused(folder, "images: image folder does not exist", image_root="images")
    os.mkfifo(folder / "fifo")
    assert_refused(folder, "cannot be read: not a regular file", "fifo")
    (folder / "annotations.json").write_text("[" * 100_000)
    assert_refused(folder, "nested too deeply")
    (folder / "annotations.json").write_text('{"images": ' + "1" * 5000 + "}")
    assert_refused(folder, "not JSON")


def test_a_file_larger_than_memory_allows_is_not_read(folder):
    with open(folder / "annotations.json", "wb") as stream:
        stream.truncate(1 << 40)  # sparse
    assert_refused(folder, "need more memory than there is")


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_sections_that_are_missing_or_empty(folder, document, section):
    path = folder / "annotations.json"
    path.write_text(json.dumps({**document, section: []}))
    assert_refused(folder, f"'{section}' is empty")
    path.write_text(json.dumps({**document, section: {"a": 1}}))
    assert_refused(folder, f"no list '{section}'")
    del document[section]
    path.write_text(json.dumps(document))
    assert_refused(folder, f"no list '{section}'")
    path.write_text("[]")
    assert_refused(folder, "no object")


def test_a_folder_without_any_of_the_images(folder, document):
    (folder / "images").mkdir()
    (folder / "annotations.json").write_text(json.dumps(document))
    for name in ("a.png", "b.png"):
        (folder / name).rename(folder / "images" / name)
    assert_refused(
        folder, r"holds none of the images that .*annotations\.json lists, such as a\.png$"
    )
    for image in document["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    (folder / "annotations.json").write_text(json.dumps(document))
    assert_refused(folder, rf"such as images/a\.png; {folder} does$", image_root="images")
    for image in document["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    (folder / "annotations.json").write_text(json.dumps(document))
    assert_refused(folder, "it has a.png, without the folder train/images$", image_root="images")


def test_images_can_be_left_out_afterwards(folder, document):
    register(folder, document)
    leave_out_images(NAME, [4])
    (record,) = load_dataset(NAME)
    assert record["image_id"] == 9
    assert MetadataCatalog.get(NAME).thing_classes == ["dog", "cat"]
    assert set(COCO(MetadataCatalog.get(NAME).json_file).imgs) == {9}
    register_coco_dataset(NAME, folder / "annotations.json", folder)  # again: stays as it is
    assert load_dataset(NAME) == [record]
    with pytest.raises(DatasetError, match="no image with an object is left"):
        leave_out_images(NAME, [9])


def test_a_cache_that_cannot_be_written_to_is_named(folder, document, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("D2DEFENSE_CACHE", str(folder / "file"))
    del document["annotations"][0]["area"]
    with pytest.raises(DatasetError, match="D2DEFENSE_CACHE"):
        register(folder, document)
    assert NAME not in DatasetCatalog
