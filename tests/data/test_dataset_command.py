# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json

import cv2
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2defense.cli import dataset
from d2defense.data.synth_signs.generate import generate_split


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    dataset.add_arguments(parser)
    return dataset.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def own(tmp_path):
    folder = generate_split("val", 64, 7, tmp_path)
    yield folder
    for catalogue in (DatasetCatalog, MetadataCatalog):
        if folder.json_file.stem in catalogue:
            catalogue.remove(folder.json_file.stem)


def test_counts_and_contact_sheet_of_a_dataset_of_ones_own(own, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert run("--coco", own.json_file, own.image_root, "--contact-sheet", sheet) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(own.json_file) in lines[0]
    document = json.loads(own.json_file.read_text())
    assert f"all {len(document['annotations'])} 7" in [" ".join(line.split()) for line in lines]
    rows, columns = 2, 5
    assert cv2.imread(str(sheet)).shape == (rows * 260 - 4, columns * 260 - 4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synth_signs_vall"], "synth_signs_val"),
        (["--coco", "absent.json", "."], "absent.json: annotation file does not exist"),
        (["--images", "0"], "--images must be at least 1"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, arguments, message):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
