# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2defense.data import DatasetError, load_dataset
from d2defense.data.coco import register_coco_dataset

NAME = "mine"


@pytest.fixture
def document():
    return {
        "images": [
            {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 10, 8], "area": 80},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [5.5, 2, 10, 8], "area": 80},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


@pytest.fixture
def folder(tmp_path):
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
    (folder / "b.png").unlink()
    assert_refused(folder, r"b\.png: image listed in .* does not exist")


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "names image 5"),
        ({"category_id": 5}, "names category 5"),
        ({"bbox": [1, 2, 3]}, "not four numbers"),
        ({"bbox": None}, "not four numbers"),
        ({"id": 2}, "annotation 2 is listed twice"),
    ],
)
def test_annotations_that_do_not_fit(folder, document, change, message):
    document["annotations"][0].update(change)
    (folder / "annotations.json").write_text(json.dumps(document))
    assert_refused(folder, re.escape(message))


def test_an_annotation_without_a_box(folder, document):
    del document["annotations"][1]["bbox"]
    (folder / "annotations.json").write_text(json.dumps(document))
    assert_refused(folder, "annotation 2 has no 'bbox'")
