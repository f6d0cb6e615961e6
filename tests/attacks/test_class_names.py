# SPDX-License-Identifier: Apache-2.0
"""Which classes an attack may name: those of any dataset that Detectron2 knows."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2defense.attacks.build import class_names
from d2defense.data import DatasetError


@pytest.fixture
def register(tmp_path):
    """Registers a COCO file as Detectron2's documentation says: the names come with the images."""
    name = "cells_of_a_test"

    def add(content: str) -> str:
        path = tmp_path / "cells.json"
        path.write_text(content)
        register_coco_instances(name, {}, str(path), str(tmp_path))
        return name

    yield add
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_names_of_a_dataset_that_was_not_loaded_yet_are_known(register):
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "bbox": [1, 1, 4, 4],
                "area": 16,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 3, "name": "red"}, {"id": 5, "name": "white"}],
    }
    assert class_names([register(json.dumps(document))]) == ("red", "white")


def test_a_file_that_cannot_be_read_is_named(register):
    with pytest.raises(DatasetError, match="cells_of_a_test: cannot be loaded"):
        class_names([register("no JSON")])


def test_of_no_dataset_and_an_unknown_one_no_names_are_known():
    assert class_names([]) == ()
    assert class_names(["never_registered_here"]) == ()
