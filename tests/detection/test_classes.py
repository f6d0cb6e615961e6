# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from d2defense.detection import ClassMapError, class_indices, load_class_map

CELLS = ["RBC", "WBC", "Platelets"]


@pytest.fixture
def class_map(tmp_path):
    def write(text: str):
        path = tmp_path / "map.yaml"
        path.write_text(text)
        return load_class_map(path)

    return write


def test_equal_counts_mean_equal_classes_and_others_none():
    assert class_indices(CELLS, 3) == [0, 1, 2]
    assert class_indices(CELLS, 80) == [-1, -1, -1]


def test_a_map_says_which_class_is_which(class_map):
    by_index = class_map("{RBC: 7, Platelets: 0}")
    assert class_indices(CELLS, 8, by_index) == [7, -1, 0]
    named = "{classes: {WBC: white, RBC: 0}, model_classes: [red, platelet, white]}"
    assert class_indices(CELLS, 3, class_map(named)) == [0, 2, -1]
    assert class_indices(CELLS, 8, class_map(json.dumps({"RBC": 7}))) == [7, -1, -1]


def test_names_may_come_from_a_registered_dataset(class_map):
    made = class_map("{classes: {RBC: donut}, model_classes: coco_2017_val}")
    assert class_indices(CELLS, 80, made) == [54, -1, -1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a mapping"),
        ("[1]", "not a mapping"),
        ("{", "neither YAML nor JSON"),
        ("{RBC: red}", "'red' is not among 'model_classes'"),
        ("{RBC: 1.5}", "neither an index nor a name"),
        ("{RBC: true}", "neither an index nor a name"),
        ("{classes: {RBC: 0}, names: []}", "unknown key names"),
        ("{classes: {RBC: 0}, model_classes: 3}", "neither a list"),
        ("{classes: {RBC: 0}, model_classes: no_such_set}", "no_such_set"),
    ],
)
def test_files_that_are_no_class_map_are_named(class_map, text, reason):
    with pytest.raises(ClassMapError, match=rf"map\.yaml: .*{reason}"):
        class_map(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{Red: 1}", "the dataset has no class 'Red'; it has RBC"),
        ("{RBC: 3}", "no class 3, only 0 to 2"),
        ("{RBC: -1}", "no class -1"),
        ("{classes: {RBC: a}, model_classes: [a, b]}", "names 2 classes of the detector, .* has 3"),
    ],
)
def test_maps_that_fit_neither_dataset_nor_detector_are_refused(class_map, text, reason):
    with pytest.raises(ClassMapError, match=reason):
        class_indices(CELLS, 3, class_map(text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ClassMapError, match=r"gone\.yaml: No such file"):
        load_class_map(tmp_path / "gone.yaml")
