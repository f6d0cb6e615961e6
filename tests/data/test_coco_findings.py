# SPDX-License-Identifier: Apache-2.0
"""What is found in a COCO-format file, kind by kind, and that the rest of the file stays usable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2defense.data import DatasetError, DatasetSource
from d2defense.data.coco import Kind, Outcome, register_coco_dataset
from d2defense.data.coco.register import FindingsError

NAME = "mine"
Document = dict[str, list[dict[str, Any]]]


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def pixels_of(box: list[float]) -> np.ndarray:
    mask = np.zeros((30, 40), np.uint8, order="F")
    x, y, width, height = map(int, box)
    mask[y : y + height, x : x + width] = 1
    return mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def sound_document() -> Document:
    """Ten images of 40 x 30 with an object each, of two classes in turn."""
    document: Document = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    for index in range(10):
        box = [index, 2, 10 + index, 8]
        document["images"].append(
            {"id": 101 + index, "file_name": f"{index}.png", "width": 40, "height": 30}
        )
        document["annotations"].append(
            {
                "id": 11 + index,
                "image_id": 101 + index,
                "category_id": 1 + index % 2,
                "bbox": box,
                "area": 8.0 * (10 + index),
                "iscrowd": 0,
                "segmentation": rectangle(*box),
            }
        )
    return document


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("D2DEFENSE_CACHE", str(tmp_path / "cache"))
    for index in range(10):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((30, 40, 3), np.uint8))
    yield tmp_path
    for catalogue in (DatasetCatalog, MetadataCatalog):
        if NAME in catalogue:
            catalogue.remove(NAME)


def register(folder: Path, document: Document) -> Any:
    (folder / "annotations.json").write_text(json.dumps(document))
    return register_coco_dataset(NAME, folder / "annotations.json", folder)


def registered_file() -> Document:
    return json.loads(Path(MetadataCatalog.get(NAME).json_file).read_text())


CASES: dict[Kind, tuple[Callable[[Document, Path], None], list[str]]] = {}


def case(kind: Kind, *ids: str) -> Callable:
    """A function that spoils a sound document in one way, and the ids that must be named."""

    def keep(function: Callable[[Document, Path], None]) -> None:
        CASES[kind] = (function, list(ids))

    return keep


@case(Kind.RECORD, "no. 11 of images")
def _(document, folder):
    document["images"].append("12.png")


@case(Kind.NUMBER, "category 2", "image_id of annotation 11", "box of annotation 12")
def _(document, folder):
    document["categories"][1]["id"] = 2.0
    document["annotations"][0]["image_id"] = "101"
    document["annotations"][1]["bbox"][0] = "1.0"


@case(Kind.IMAGE_ID, "no. 1")
def _(document, folder):
    del document["images"][0]["id"]
    del document["annotations"][0]


@case(Kind.IMAGE_ID_TWICE, "101")
def _(document, folder):
    document["images"][1]["id"] = 101
    document["annotations"][1]["image_id"] = 101


@case(Kind.IMAGE_ID_CLASH, "'101'")
def _(document, folder):
    document["images"][1]["id"] = "101"
    document["annotations"][1]["image_id"] = "101"


@case(Kind.IMAGE_ID_TEXT, "'two'", "'300'")
def _(document, folder):
    for index, text in ((1, "two"), (2, "300")):
        document["images"][index]["id"] = document["annotations"][index]["image_id"] = text


@case(Kind.IMAGE_TWICE, "103")
def _(document, folder):
    document["images"].append(dict(document["images"][2]))


@case(Kind.FILE_NAME, "101", "103")
def _(document, folder):
    document["images"][0]["file_name"] = None
    document["images"][2]["file_name"] = 7


@case(Kind.FILE_OUTSIDE, "101", "102", "103")
def _(document, folder):
    (folder.parent / "above.png").write_bytes((folder / "0.png").read_bytes())
    for image, name in zip(
        document["images"], ("../above.png", "/etc/passwd", "..\\..\\above.png"), strict=False
    ):
        image["file_name"] = name


@case(Kind.FILE_SPELLING, "101", "102", "103", "104")
def _(document, folder):
    (folder / "Images").mkdir()
    for old, new in (
        ("0.png", "a.png"),
        ("1.png", "b c.png"),
        ("2.png", "D.PNG"),
        ("3.png", "ü.png"),
    ):
        (folder / old).rename(folder / "Images" / new)
    names = ("Images\\a.png", "Images/b%20c.png", "images/d.png", "images\\%C3%BC.PNG")
    for image, name in zip(document["images"], names, strict=False):
        image["file_name"] = name


@case(Kind.FILE_AMBIGUOUS, "101")
def _(document, folder):
    for name in ("A.png", "a.PNG"):
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    document["images"][0]["file_name"] = "a.png"


@case(Kind.FILE_TWICE, "102")
def _(document, folder):
    document["images"][1]["file_name"] = "./0.png"


@case(Kind.IMAGE_SIZE, "101", "102", "103")
def _(document, folder):
    del document["images"][0]["width"]
    document["images"][1]["height"] = 0
    document["images"][2]["height"] = None


@case(Kind.CATEGORY_ID, "no. 3")
def _(document, folder):
    document["categories"].append({"name": "cow", "id": None})


@case(Kind.CATEGORY_ID_MIXED, "'3'")
def _(document, folder):
    document["categories"].append({"name": "cow", "id": "3"})


@case(Kind.CATEGORY_ID_TWICE, "2")
def _(document, folder):
    document["categories"].append({"name": "cow", "id": 2})


@case(Kind.CATEGORY_TWICE, "2")
def _(document, folder):
    document["categories"].append(dict(document["categories"][1]))


@case(Kind.CATEGORY_NAME, "1", "2")
def _(document, folder):
    del document["categories"][0]["name"]
    document["categories"][1]["name"] = " "


@case(Kind.CATEGORY_NAME_TWICE, "1", "3")
def _(document, folder):
    document["categories"].append({"name": "cat", "id": 3})


@case(Kind.CATEGORY_PARENT, "0")
def _(document, folder):
    document["categories"].insert(0, {"name": "pets", "id": 0, "supercategory": "none"})
    for category in document["categories"][1:]:
        category["supercategory"] = "pets"


@case(Kind.ANNOTATION_TWICE, "13")
def _(document, folder):
    document["annotations"].append(dict(document["annotations"][2]))


@case(Kind.ANNOTATION_ID, "no. 1", "0", "'a3f0'", "1.5")
def _(document, folder):
    del document["annotations"][0]["id"]
    for index, value in ((1, 0), (2, "a3f0"), (3, 1.5)):
        document["annotations"][index]["id"] = value


@case(Kind.ANNOTATION_ID_TWICE, "11")
def _(document, folder):
    document["annotations"][1]["id"] = 11


@case(Kind.OBJECT_TWICE, "21")
def _(document, folder):
    document["annotations"].append({**document["annotations"][2], "id": 21})


@case(Kind.UNKNOWN_IMAGE, "11 of 5", "12 of no. 0")
def _(document, folder):
    document["annotations"][0]["image_id"] = 5
    document["annotations"][1]["image_id"] = None


@case(Kind.UNKNOWN_CATEGORY, "11 of 5", "12 of 'cat'")
def _(document, folder):
    document["annotations"][0]["category_id"] = 5
    document["annotations"][1]["category_id"] = "cat"


@case(Kind.CROWD, "11", "12")
def _(document, folder):
    del document["annotations"][0]["iscrowd"]
    document["annotations"][1]["iscrowd"] = None


@case(Kind.CROWD_VALUE, "11", "12")
def _(document, folder):
    document["annotations"][0]["iscrowd"] = 2
    document["annotations"][1]["iscrowd"] = "no"


@case(Kind.IGNORE, "11")
def _(document, folder):
    document["annotations"][0]["ignore"] = 1
    document["annotations"][1]["ignore"] = 0


@case(Kind.AREA, "11", "12", "13")
def _(document, folder):
    del document["annotations"][0]["area"]
    document["annotations"][1]["area"] = 0
    document["annotations"][2]["area"] = None


@case(Kind.BOX, "11", "12")
def _(document, folder):
    for annotation in document["annotations"][:2]:
        annotation.update(segmentation=[])
    del document["annotations"][0]["bbox"]
    document["annotations"][1]["bbox"] = []


@case(Kind.BOX_OF_MASK, "11", "12")
def _(document, folder):
    first, second = document["annotations"][:2]
    second["segmentation"] = uncompressed(pixels_of(second["bbox"]))
    del first["bbox"]
    second["bbox"] = None


@case(Kind.BOX_TYPE, "11", "12", "13", "14")
def _(document, folder):
    boxes = ([1, 2, 3], [1, 2, 3, 4, 0.5], "1 2 3 4", [1, 2, 3, True])
    for annotation, box in zip(document["annotations"], boxes, strict=False):
        annotation["bbox"] = box


@case(Kind.BOX_NOT_FINITE, "11", "12", "13")
def _(document, folder):
    for annotation, value in zip(document["annotations"], (np.nan, np.inf, 10**400), strict=False):
        annotation["bbox"][2] = value


@case(Kind.BOX_NEGATIVE, "11")
def _(document, folder):
    document["annotations"][0]["bbox"] = [20, 20, -5, -5]


@case(Kind.BOX_RELATIVE, *map(str, range(11, 21)))
def _(document, folder):
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x / 40, y / 30, width / 40, height / 30]


@case(Kind.BOX_CORNERS, "19", "20")
def _(document, folder):
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x + 5, y, x + width + 5, y + height]


@case(Kind.BOX_OUTSIDE, "11", "12")
def _(document, folder):
    document["annotations"][0]["bbox"] = [50, 2, 10, 8]
    document["annotations"][1]["bbox"] = [1, -20, 10, 8]


@case(Kind.BOX_EMPTY, "11", "12")
def _(document, folder):
    document["annotations"][0]["bbox"] = [5, 5, 0, 8]
    document["annotations"][1]["bbox"] = [5, 5, 3, 0.0]


@case(Kind.BOX_CUT, "11", "13")
def _(document, folder):
    document["annotations"][0]["bbox"] = [-5, 2, 15, 8]
    document["annotations"][1]["bbox"] = [30.5, 2, 10.2, 8]  # 0.7 pixels: rounding
    document["annotations"][2]["bbox"] = [30, 20, 20, 20]


@case(Kind.POLYGON_FLAT, "11")
def _(document, folder):
    document["annotations"][0]["segmentation"] = document["annotations"][0]["segmentation"][0]


@case(Kind.POLYGON_SHORT, "11", "12", "13")
def _(document, folder):
    first, second, third = document["annotations"][:3]
    first["segmentation"].append([1, 2, 3, 4])
    second["segmentation"] = [[1, 2, 3, 4]]
    third["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]


@case(Kind.MASK, *map(str, range(11, 18)))
def _(document, folder):
    whole = uncompressed(pixels_of([2, 2, 10, 8]))
    masks = (
        "polygon",
        [["1", "2", "3", "4", "5", "6"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        {**whole, "size": [40, 30]},
        {**whole, "counts": whole["counts"][:-1]},
        {**whole, "counts": "not of COCO's alphabet \u00e4"},
        {**whole, "counts": coco_masks.encode(pixels_of([2, 2, 9, 8]))["counts"].decode()[:-1]},
    )  # fmt: skip
    for annotation, mask in zip(document["annotations"], masks, strict=False):
        annotation["segmentation"] = mask


@case(Kind.KEYPOINTS, "11", "12")
def _(document, folder):
    document["annotations"][0].update(keypoints=[1, 2], num_keypoints=1)
    document["annotations"][1].update(keypoints=["1", 2, 2], num_keypoints=1)


@case(Kind.KEYPOINT_COUNT, "11")
def _(document, folder):
    document["annotations"][0].update(keypoints=[1, 2, 2, 3, 4, 1, 0, 0, 0])


def test_every_kind_has_a_case():
    assert set(CASES) == set(Kind)


def test_a_sound_file_is_registered_as_it_is(folder):
    assert list(register(folder, sound_document())) == []
    assert MetadataCatalog.get(NAME).json_file == str(folder / "annotations.json")
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.name)
def test_what_is_wrong_is_found_by_id(folder, kind):
    document = sound_document()
    spoil, ids = CASES[kind]
    spoil(document, folder)
    if kind.outcome is Outcome.ERROR:
        with pytest.raises(FindingsError) as caught:
            register(folder, document)
        assert NAME not in DatasetCatalog
        (finding,) = (f for f in caught.value.findings if f.kind.outcome is Outcome.ERROR)
        assert str(caught.value) == f"{folder / 'annotations.json'}: {finding}"
    else:
        (finding,) = register(folder, document)
        assert DatasetCatalog.get(NAME)
    assert (finding.kind, finding.count, finding.ids) == (kind, len(ids), ids)
    assert re.fullmatch(r".+: \d+ \(.+\)(; .+)?", str(finding))


CORRECTED = [kind for kind in CASES if kind.outcome is Outcome.CORRECTED]


@pytest.mark.parametrize("kind", CORRECTED, ids=lambda kind: kind.name)
def test_a_corrected_file_has_nothing_left_to_correct(folder, kind):
    document = sound_document()
    CASES[kind][0](document, folder)
    register(folder, document)
    corrected = registered_file()
    for catalogue in (DatasetCatalog, MetadataCatalog):
        catalogue.remove(NAME)
    assert list(register(folder, corrected)) == []


# What remains is what the sound document has, but for ids that nothing refers to.
SAME = [
    kind
    for kind in CORRECTED
    if kind not in (Kind.BOX_EMPTY, Kind.BOX_CUT, Kind.CATEGORY_NAME, Kind.KEYPOINT_COUNT)
]


@pytest.mark.parametrize("kind", SAME, ids=lambda kind: kind.name)
def test_correcting_gives_back_the_sound_objects(folder, kind):
    document = sound_document()
    CASES[kind][0](document, folder)
    register(folder, document)
    loaded = {Path(r["file_name"]).name: r for r in DatasetCatalog.get(NAME)}
    sound = sound_document()
    assert len(loaded) == 10
    assert MetadataCatalog.get(NAME).thing_classes == ["cat", "dog"]
    records = sorted(loaded.values(), key=lambda r: r["annotations"][0]["bbox"][2])
    for record, image, annotation in zip(
        records, sound["images"], sound["annotations"], strict=True
    ):
        assert (record["width"], record["height"]) == (image["width"], image["height"])
        assert Path(record["file_name"]).is_file()
        (item,) = record["annotations"]
        assert item["bbox"] == annotation["bbox"]
        assert item["category_id"] + 1 == annotation["category_id"]
        assert item["iscrowd"] == 0
    for entry in registered_file()["annotations"]:
        assert entry["area"] == entry["bbox"][2] * entry["bbox"][3]


@pytest.mark.parametrize("kind", CORRECTED, ids=lambda kind: kind.name)
def test_coco_evaluation_counts_every_object_of_a_corrected_file(folder, kind):
    document = sound_document()
    CASES[kind][0](document, folder)
    register(folder, document)
    truth = COCO(MetadataCatalog.get(NAME).json_file)
    perfect = [
        {**{key: entry[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for entry in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_annotations_without_a_usable_id_get_one_that_no_other_has(folder):
    document = sound_document()
    CASES[Kind.ANNOTATION_ID][0](document, folder)
    document["annotations"][5]["id"] = document["annotations"][6]["id"]
    register(folder, document)
    ids = [annotation["id"] for annotation in registered_file()["annotations"]]
    assert len(set(ids)) == 10
    assert all(type(number) is int and number > 0 for number in ids)
    assert ids[7:] == [18, 19, 20]


def test_boxes_without_size_are_left_out_and_those_that_reach_outside_are_cut(folder):
    document = sound_document()
    CASES[Kind.BOX_EMPTY][0](document, folder)
    document["annotations"][2]["bbox"] = [30, 20, 20, 20]
    register(folder, document)
    entries = {entry["id"]: entry for entry in registered_file()["annotations"]}
    assert set(entries) == set(range(13, 21))
    assert entries[13]["bbox"] == [30, 20, 10, 10]


def test_an_area_is_that_of_the_mask_else_of_the_box(folder):
    document = sound_document()
    triangle, box, run_length = document["annotations"][:3]
    triangle["segmentation"] = [[0, 2, 10, 2, 0, 10]]
    del box["segmentation"]
    mask = pixels_of([2, 2, 7, 5])
    run_length["segmentation"] = uncompressed(mask)
    for annotation in (triangle, box, run_length):
        del annotation["area"]
    register(folder, document)
    areas = [entry["area"] for entry in registered_file()["annotations"][:3]]
    assert areas == [40, 11 * 8, mask.sum()]


@pytest.mark.parametrize("seed", range(20))
def test_run_length_masks_are_read_as_pycocotools_reads_them(seed):
    from d2defense.data.coco.masks import mask_area, mask_box, run_lengths

    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 200, 2))
    noise = cv2.blur(rng.random(shape), (1 + seed % 9, 1 + seed % 9))
    mask = np.asfortranarray(noise > np.quantile(noise, rng.random()), dtype=np.uint8)
    encoded = coco_masks.encode(mask)
    text = {"size": list(shape), "counts": encoded["counts"].decode()}
    listed = uncompressed(mask)
    assert run_lengths(text["counts"]) == listed["counts"]
    assert mask_area(text) == mask_area(listed) == coco_masks.area(encoded)
    if mask.any():
        assert mask_box(text) == coco_masks.toBbox(encoded).tolist()


def test_text_ids_of_one_kind_stay_as_they_are(folder):
    """In Detectron2's order, so that classes stay what they are to detectors of such data."""
    document = sound_document()
    for section, key in (("images", "id"), ("annotations", "image_id")):
        for record in document[section]:
            record[key] = f"image {record[key]}"
    for category in document["categories"]:
        category["id"] = {1: "10", 2: "9"}[category["id"]]
    for annotation in document["annotations"]:
        annotation["category_id"] = {1: 10, 2: "9"}[annotation["category_id"]]
    findings = register(folder, document)
    assert [f.kind for f in findings] == [Kind.NUMBER]
    records = DatasetCatalog.get(NAME)
    assert records[0]["image_id"] == "image 101"
    assert MetadataCatalog.get(NAME).thing_classes == ["cat", "dog"]
    assert [r["annotations"][0]["category_id"] for r in records[:2]] == [0, 1]


def test_what_was_put_right_is_told_once_a_line_a_kind(folder, caplog):
    document = sound_document()
    CASES[Kind.CROWD][0](document, folder)
    CASES[Kind.AREA][0](document, folder)
    (folder / "annotations.json").write_text(json.dumps(document))
    source = DatasetSource(NAME, str(folder / "annotations.json"), str(folder))
    source.ensure()
    source.load()
    assert [record.message for record in caplog.records] == [
        f"{folder}/annotations.json: annotations without 'iscrowd': 2 (11, 12); "
        "taken for single objects",
        f"{folder}/annotations.json: annotations without an area: 3 (11, 12, 13); "
        "that of the mask, else of the box",
    ]


def test_only_the_first_ten_ids_are_named(folder):
    document = sound_document()
    document["annotations"] += [
        {**a, "id": 100 + a["id"], "bbox": [1, 1, 5, 5]} for a in document["annotations"]
    ]
    for annotation in document["annotations"]:
        annotation["iscrowd"] = None
    (finding,) = register(folder, document)
    assert str(finding) == (
        "annotations without 'iscrowd': 20 (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, ...); "
        "taken for single objects"
    )


def test_several_kinds_of_errors_are_counted(folder):
    document = sound_document()
    CASES[Kind.BOX_NEGATIVE][0](document, folder)
    CASES[Kind.FILE_NAME][0](document, folder)
    with pytest.raises(
        DatasetError, match=r"images without a file name: 2 .* \(and 1 other kind: "
    ):
        register(folder, document)


def test_ids_of_anyone_are_printable(folder):
    document = sound_document()
    document["annotations"][0].update(id="\x1b[31m\n" + "x" * 500, bbox=[1, 2, -3, 4])
    with pytest.raises(DatasetError) as caught:
        register(folder, document)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings_that_pycocotools_cannot_read(folder, encoding):
    document = sound_document()
    document["categories"][0]["name"] = "Kätzchen"
    text = json.dumps(document, ensure_ascii=False)
    (folder / "annotations.json").write_bytes(text.encode(encoding))
    assert list(register_coco_dataset(NAME, folder / "annotations.json", folder)) == []
    assert MetadataCatalog.get(NAME).thing_classes == ["Kätzchen", "dog"]
    assert (
        len(COCO(MetadataCatalog.get(NAME).json_file).imgs) == len(DatasetCatalog.get(NAME)) == 10
    )
