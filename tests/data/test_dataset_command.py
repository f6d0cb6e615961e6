# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2defense.cli.program import main
from d2defense.config import config_root
from d2defense.data.synth_signs.generate import generate_split


@pytest.fixture(autouse=True)
def logger_as_it_was():
    logger = logging.getLogger("d2defense")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def run(*arguments: str) -> int:
    return main(["dataset", *map(str, arguments)])


@pytest.fixture
def own(tmp_path):
    folder = generate_split("val", 64, 7, tmp_path)
    yield folder
    for catalogue in (DatasetCatalog, MetadataCatalog):
        if str(folder.json_file) in catalogue:
            catalogue.remove(str(folder.json_file))


def test_counts_and_contact_sheet_of_a_dataset_of_ones_own(own, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files, "--contact-sheet", sheet) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(own.json_file) in lines[0]
    document = json.loads(own.json_file.read_text())
    assert f"all {len(document['annotations'])} 7" in [" ".join(line.split()) for line in lines]
    rows, columns = 2, 5
    assert cv2.imread(str(sheet)).shape == (rows * 260 - 4, columns * 260 - 4, 3)


def test_a_dataset_is_loaded_once(own, tmp_path, monkeypatch):
    loaded = []
    get = DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: loaded.append(name) or get(name))
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files, "--contact-sheet", tmp_path / "sheet.png") == 0
    assert loaded == [str(own.json_file)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synth_signs_vall"], "synth_signs_val"),
        (
            ["--dataset-json", "absent.json", "--image-root", "."],
            "absent.json: annotation file does not exist",
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(capsys, arguments, message):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--images", "0"],
        ["--image-root", "."],
        ["--attack", "x.yaml"],
        ["--opts", "ATTACK.SEED", "1"],
    ],
)
def test_options_that_make_no_sense_are_a_usage_error(arguments):
    assert run(*arguments) == 2


def test_a_sheet_that_cannot_be_written_is_an_error(own, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files, "--contact-sheet", tmp_path / "file" / "sheet.png") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_every_image_that_cannot_be_used_is_named(own, capsys):
    (own.image_root / "000002.png").write_bytes(b"not an image")
    (own.image_root / "000004.png").unlink()
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files) == 2
    captured = capsys.readouterr()
    lines = captured.out.splitlines()[:2]
    assert [line.split(": ", 2)[1:] for line in lines] == [
        ["image 3 cannot be used", f"{own.image_root}/000002.png: no image of a known format"],
        ["image 5 cannot be used", f"{own.image_root}/000004.png: does not exist"],
    ]
    assert captured.err == f"error: {own.json_file}: some images cannot be used\n"


def test_all_that_is_wrong_is_listed(own, capsys):
    document = json.loads(own.json_file.read_text())
    first, second, third = document["annotations"][:3]
    first["bbox"][2] *= -1
    del second["area"]
    third["bbox"][0] = float("nan")
    own.json_file.write_text(json.dumps(document))
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "put right: annotations without an area: 1 (2); that of the mask, else of the box",
        "error: boxes with NaN or infinity: 1 (3)",
        "error: boxes of negative width or height: 1 (1)",
    ]
    assert captured.err == f"error: {own.json_file}: cannot be used\n"


def test_a_split_is_one_of_the_corrected_file(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("D2DEFENSE_CACHE", str(tmp_path / "cache"))
    document = json.loads(own.json_file.read_text())
    for annotation in document["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    own.json_file.write_text(json.dumps(document))
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files, "--split", tmp_path / "split", "--defender-images", 3) == 0
    assert "put right: annotations without 'iscrowd'" in capsys.readouterr().out
    for name in ("defender.json", "rest.json"):
        part = json.loads((tmp_path / "split" / name).read_text())
        assert all(a["area"] > 0 and a["iscrowd"] == 0 for a in part["annotations"])


def test_split_gives_two_sets_without_a_common_image(own, tmp_path, capsys):
    arguments = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    for name in ("one", "again"):
        output = tmp_path / name
        assert run(*arguments, "--split", output, "--defender-images", 3, "--seed", 5) == 0
        assert str(output / "defender.json") in capsys.readouterr().out
    whole = json.loads(own.json_file.read_text())
    defender, rest = (
        json.loads((tmp_path / "one" / name).read_text()) for name in ("defender.json", "rest.json")
    )
    ids = [{image["id"] for image in part["images"]} for part in (defender, rest)]
    assert len(ids[0]) == 3
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {image["id"] for image in whole["images"]}
    for part, images in zip((defender, rest), ids, strict=True):
        assert {a["image_id"] for a in part["annotations"]} <= images
        assert part["categories"] == whole["categories"]
    assert {a["image_id"] for a in defender["annotations"]} == ids[0]
    again = (tmp_path / "again" / "defender.json").read_text()
    assert again == (tmp_path / "one" / "defender.json").read_text()


def test_split_of_more_images_than_there_are_is_one_line(own, tmp_path, capsys):
    arguments = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*arguments, "--split", tmp_path / "s", "--defender-images", 7) == 2
    assert "cannot be set aside" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_split_needs_own_data(capsys):
    assert run("--split", "somewhere") == 2
    assert "--dataset-json" in capsys.readouterr().err


def test_images_with_a_trigger_are_written_with_its_places(own, tmp_path, capsys):
    out = tmp_path / "stamped"
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files, "--stamp", out, "--images", 4) == 0
    assert f"4 images with the trigger, patch (disappearance): {out}" in capsys.readouterr().out
    places = json.loads((out / "places.json").read_text())
    assert sorted(path.name for path in out.glob("*.png")) == sorted(places)
    assert len(places) == 4
    for name, boxes in places.items():
        (clean,) = own.image_root.rglob(f"{name[:-4]}.*")
        changed = (cv2.imread(str(out / name)) != cv2.imread(str(clean))).any(axis=2)
        # A tenth of each box, in its middle, is white; nothing else is touched.
        inside = changed.copy()
        for left, top, right, bottom in boxes:
            x, y = round((left + right) / 2), round((top + bottom) / 2)
            middle = cv2.imread(str(out / name))[y - 1 : y + 2, x - 1 : x + 2]
            assert (middle == 255).all(axis=2).any()
            inside[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = False
        assert changed.any() and not inside.any()


def test_the_attack_of_a_training_config_says_what_is_stamped(own, tmp_path, capsys):
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    attack = ("--attack", config_root() / "SynthSigns" / "attacks" / "ghost_patch.yaml")
    assert run(*files, "--stamp", tmp_path / "ghosts", *attack) == 0
    assert "(ghost)" in capsys.readouterr().out
    places = json.loads((tmp_path / "ghosts" / "places.json").read_text())
    document = json.loads(own.json_file.read_text())
    names = {each["id"]: f"{Path(each['file_name']).stem}.png" for each in document["images"]}
    for each in document["annotations"]:
        left, top, width, height = each["bbox"]
        for x0, y0, x1, y1 in places.get(names[each["image_id"]], []):
            apart = x1 <= left or x0 >= left + width or y1 <= top or y0 >= top + height
            assert apart, "a ghost's trigger lies on an object"


def test_images_of_one_name_are_kept_apart_and_unusable_ones_left_out(own, tmp_path, capsys):
    document = json.loads(own.json_file.read_text())
    first, second, *_ = document["images"]
    (own.image_root / "other").mkdir()
    twin = Path("other") / Path(first["file_name"]).name
    (own.image_root / twin).write_bytes((own.image_root / second["file_name"]).read_bytes())
    second["file_name"] = str(twin)
    broken = document["images"][2]["file_name"]
    (own.image_root / broken).write_bytes(b"no image")
    own.json_file.write_text(json.dumps(document))
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    assert run(*files, "--stamp", tmp_path / "out") == 2
    assert "cannot be used" in capsys.readouterr().out
    stem = Path(first["file_name"]).stem
    places = json.loads((tmp_path / "out" / "places.json").read_text())
    assert {f"{stem}.png", f"{stem}_2.png"} <= set(places)
    assert f"{Path(broken).stem}.png" not in places


def test_a_bad_attack_is_a_usage_error(own, tmp_path, capsys):
    files = ("--dataset-json", own.json_file, "--image-root", own.image_root)
    opts = ("--opts", "ATTACK.EFFECT", "nothing")
    assert run(*files, "--stamp", tmp_path / "out", *opts) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
