# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import get_cfg

from d2defense.checkpoint import CheckpointError, load_config
from d2defense.config import get_d2defense_cfg


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "config.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refused(path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_dumped_config_of_a_stock_detector(write):
    stock = get_cfg()
    stock.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"))
    stock.MODEL.ROI_HEADS.NUM_CLASSES = 3
    stock.DATASETS.TRAIN = ("private_train",)
    stock.OUTPUT_DIR = "/somewhere/else"
    cfg = load_config(write(stock.dump()))
    assert cfg.MODEL.META_ARCHITECTURE == "InstrumentedRCNN"
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert cfg.MODEL.RESNETS.DEPTH == 50
    assert cfg.INPUT.MIN_SIZE_TEST == stock.INPUT.MIN_SIZE_TEST
    # What it says of the places where it was trained is nothing to read from or write to.
    assert cfg.MODEL.WEIGHTS == ""
    assert "private_train" not in cfg.DATASETS.TRAIN
    assert cfg.OUTPUT_DIR != "/somewhere/else"


def test_config_dumped_by_this_project(make_tiny_cfg, write):
    cfg = make_tiny_cfg("MODEL.TINY_RESNET.STEM_CHANNELS", 24)
    loaded = load_config(write(cfg.dump()))
    assert yaml.safe_load(loaded.MODEL.dump()) == yaml.safe_load(cfg.MODEL.dump())


def test_a_config_has_no_say_in_how_it_is_scanned_and_repaired(make_tiny_cfg, write):
    cfg = make_tiny_cfg(
        "DEFENSE.MAX_IMAGES", 1,
        "DEFENSE.CALIBRATION", "/theirs.json",
        "REMOVAL.SOLVER.MAX_ITER", 0,
        "ATTACK.NAME", "oda",
    )  # fmt: skip
    loaded, defaults = load_config(write(cfg.dump())), get_d2defense_cfg()
    for node in ("ATTACK", "DEFENSE", "REMOVAL"):
        assert loaded[node] == defaults[node]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {canary}']",
        "MODEL: !!python/object/apply:builtins.open ['{canary}', 'w']",
        "MODEL: {{WEIGHTS: !!python/object/new:subprocess.Popen [['touch', '{canary}']]}}",
        "VERSION: !!python/name:os.system",
    ],
)
def test_tags_that_construct_python_objects_are_refused_and_not_executed(text, write, canary):
    refused(write(text.format(canary=canary)), "not a plain YAML config")
    time.sleep(0.05)
    assert not canary.exists()


def test_strings_are_not_evaluated_as_python(write, canary):
    # yacs evaluates strings that look like Python literals; anything else must stay a string.
    evil = f"__import__('os').system('touch {canary}')"
    names = "PROPOSAL_GENERATOR: {NAME: RPN}, ROI_HEADS: {NAME: StandardROIHeads}"
    path = write(f'MODEL: {{{names}, WEIGHTS: "{evil}"}}\nOUTPUT_DIR: "{evil}"')
    assert load_config(path).MODEL.WEIGHTS == ""
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("_BASE_: ../../etc/passwd\nMODEL: {}", "_BASE_"),
        ("- a\n- b", "no mapping"),
        ("", "no mapping"),
        ("42", "no mapping"),
        ("MODEL: {NO_SUCH_KEY: 1}", "NO_SUCH_KEY"),
        ("MODEL: 3", "Type mismatch"),
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: many}}", "not a Detectron2 config"),
        ("{1: 2}", "not a Detectron2 config"),
        ("VERSION: 1", "VERSION 1 is not 2"),
        ("VERSION: [2]", "VERSION"),
        ("MODEL: {META_ARCHITECTURE: RetinaNet}", "RetinaNet"),
        ("MODEL: {META_ARCHITECTURE: null}", "META_ARCHITECTURE"),
        ("a: [1", "not a plain YAML config"),
        (b"\xff\xfe\x00\x01binary", "not a plain YAML config"),
        (b"PK\x03\x04" + bytes(range(256)) * 4, "not a plain YAML config"),
        (b"\x80\x02}q\x00.", "not a plain YAML config"),
        ("[" * 20_000, "not a plain YAML config"),
        ("a" * (1 << 20) + "b", "larger than"),
    ],
    ids=range(18),
)
def test_anything_else_is_refused_in_one_line(content, reason, write):
    refused(write(content), reason)


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "gone.yaml", "not a plain YAML config")
    refused(tmp_path, "not a plain YAML config")


@pytest.mark.parametrize(
    "open_, close",
    [("{x: 1, y: *{0}, z: *{0}, w: *{0}}", "MODEL"), ("[*{0}, *{0}, *{0}, *{0}]", "OUTPUT_DIR")],
    ids=["mappings", "lists"],
)
def test_aliases_that_multiply_are_refused_quickly(open_, close, write):
    lines = ["a0: &a0 {x: 1}"]
    lines += [
        f"a{level}: &a{level} " + open_.replace("{0}", f"a{level - 1}") for level in range(1, 40)
    ]
    lines.append(f"{close}: *a39")
    start = time.process_time()
    refused(write("\n".join(lines)), "its aliases expand to more than 100000 values")
    assert time.process_time() - start < 5


def test_mapping_that_contains_itself(write):
    refused(write("MODEL: &m {RPN: *m}"), "its aliases expand to more than 100000 values")


def test_aliases_of_ordinary_size_are_read(write, make_tiny_cfg):
    content = yaml.safe_load(make_tiny_cfg().dump())
    content["MODEL"]["ROI_HEADS"]["IN_FEATURES"] = content["MODEL"]["FPN"]["IN_FEATURES"]
    text = yaml.safe_dump(content)
    assert "*id001" in text
    assert load_config(write(text)).MODEL.ROI_HEADS.IN_FEATURES == ["res2", "res3", "res4", "res5"]
