# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import time

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.config.compat import downgrade_config

from d2defense.checkpoint import CheckpointError, load_config
from d2defense.checkpoint.limits import find_excess
from d2defense.checkpoint.names import find_unknown_name
from d2defense.checkpoint.trainable import find_untrainable
from d2defense.config import get_base_cfg, get_d2defense_cfg
from d2defense.config.zoo import zoo_config, zoo_configs


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
        "ATTACK.EFFECT", "disappearance",
    )  # fmt: skip
    loaded, defaults = load_config(write(cfg.dump())), get_base_cfg()
    for node in ("ATTACK", "DEFENSE", "REMOVAL"):
        assert loaded[node] == defaults[node]


def test_settings_of_another_version_or_of_somebody_s_own_attack_are_no_hindrance(write):
    loaded = load_config(
        write(
            "MODEL: {META_ARCHITECTURE: GeneralizedRCNN, MASK_ON: False}\n"
            "ATTACK: {NAME: theirs, THEIRS: {STRENGTH: 3}}\n"
            "DEFENSE: [1]\n"
            "REMOVAL: {PATCH_AUGMENTATION: {ENABLED: True}}\n"
        )
    )
    assert loaded.ATTACK == get_base_cfg().ATTACK
    assert loaded.REMOVAL == get_base_cfg().REMOVAL


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
        ("VERSION: 3", "VERSION '3' is neither 1 nor 2"),
        ("VERSION: [2]", "VERSION"),
        ("MODEL: {META_ARCHITECTURE: ProposalNetwork}", "ProposalNetwork"),
        ("MODEL: {META_ARCHITECTURE: null}", "META_ARCHITECTURE"),
        ("a: [1", "not a plain YAML config"),
        (b"\xff\xfe\x00\x01binary", "not a plain YAML config"),
        (b"PK\x03\x04" + bytes(range(256)) * 4, "not a plain YAML config"),
        (b"\x80\x02}q\x00.", "not a plain YAML config"),
        ("[" * 20_000, "not a plain YAML config"),
        ("a" * (256 << 10) + "b", "larger than"),
    ],
    ids=range(18),
)
def test_anything_else_is_refused_in_one_line(content, reason, write):
    refused(write(content), reason)


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "gone.yaml", "cannot be opened: No such file or directory")
    refused(tmp_path, "cannot be opened: it is a folder")


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


LEAF = "MODEL: {ROI_HEADS: {NAME: StandardROIHeads, NUM_CLASSES: 3}}"


def test_base_inside_the_folder(write, tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "top.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: GeneralizedRCNN, RESNETS: {DEPTH: 101}}"
    )
    (tmp_path / "bases" / "middle.yaml").write_text(
        "_BASE_: top.yaml\nMODEL: {RESNETS: {DEPTH: 34}, ROI_HEADS: {NAME: StandardROIHeads}}"
    )
    cfg = load_config(write(f"_BASE_: bases/middle.yaml\n{LEAF}"))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (34, 3)


def test_several_bases_in_order(write, tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {RESNETS: {DEPTH: 101}, MASK_ON: True}")
    (tmp_path / "b.yaml").write_text("MODEL: {RESNETS: {DEPTH: 34}}")
    cfg = load_config(write(f"_BASE_: [a.yaml, b.yaml]\n{LEAF}"))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.MASK_ON) == (34, True)


@pytest.mark.parametrize(
    "base",
    [
        "Base-RCNN-FPN.yaml",
        "../Base-RCNN-FPN.yaml",
        "~/Base-RCNN-FPN.yaml",
        "{elsewhere}/Base-RCNN-FPN.yaml",
        "https://example.org/Base-RCNN-FPN.yaml",
        "detectron2://Base-RCNN-FPN.yaml",
        "model_zoo://Base-RCNN-FPN.yaml",
        "../COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    ],
)
def test_no_config_of_the_zoo_stands_in_for_an_untrusted_base(tmp_path, base, monkeypatch):
    # Detectron2 would read the attacker's file; a scan of the zoo's says nothing of it.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    for folder in (tmp_path, tmp_path / "COCO-Detection"):
        folder.mkdir(exist_ok=True)
        (folder / "Base-RCNN-FPN.yaml").write_text("MODEL: {RESNETS: {DEPTH: 34}}")
    path = tmp_path / "model" / "config.yaml"
    path.write_text(f"_BASE_: {base.format(elsewhere=tmp_path)}\n{LEAF}")
    refused(path, "its _BASE_ .* is no file in its folder")


@pytest.mark.parametrize("base", ["../{name}", "~/{name}", "{elsewhere}/{name}", "[../{name}]"])
def test_bases_of_a_trusted_config_are_those_of_detectron2(tmp_path, base, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("MODEL: {RESNETS: {DEPTH: 34}, MASK_ON: True}")
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "config.yaml"
    path.write_text(f"_BASE_: {base.format(name='base.yaml', elsewhere=tmp_path)}\n{LEAF}")
    stock = get_cfg()
    stock.merge_from_file(str(path), allow_unsafe=False)
    cfg = load_config(path, trusted=True)
    assert cfg.MODEL.RESNETS.DEPTH == stock.MODEL.RESNETS.DEPTH == 34
    assert cfg.MODEL.MASK_ON == stock.MODEL.MASK_ON is True
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_a_config_is_bounded_together_with_its_bases(write, tmp_path):
    filler = "# " + "x" * (100 << 10) + "\n"
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(filler + "MODEL: {}")
    assert load_config(write(filler + f"_BASE_: a.yaml\n{LEAF}")).MODEL.ROI_HEADS.NUM_CLASSES == 3
    refused(write(filler + f"_BASE_: [a.yaml, b.yaml]\n{LEAF}"), "larger than 262144 bytes with")


def test_configs_of_the_zoo_mean_what_they_mean_to_detectron2():
    name = "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml"
    stock = get_cfg()
    stock.merge_from_file(model_zoo.get_config_file(name))
    cfg = load_config(zoo_config(name), trusted=True)
    for node in ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "ANCHOR_GENERATOR"):
        assert cfg.MODEL[node] == stock.MODEL[node]


@pytest.mark.parametrize(
    "base",
    [
        "/etc/passwd",
        "../outside.yaml",
        "x/../../outside.yaml",
        "~/outside.yaml",
        "link.yaml",
        "gone.yaml",
        "https://example.org/Base.yaml",
        "file:///etc/passwd",
        "x" * 900,
        "[1]",
        '"a\\0b"',
        "5",
    ],
)
def test_base_that_leads_elsewhere(write, tmp_path, base):
    (tmp_path / "outside.yaml").write_text("SECRET: 1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    path = tmp_path / "model" / "config.yaml"
    path.write_text(f"_BASE_: {base}\n{LEAF}")
    refused(path, "its _BASE_ ")


def test_bases_that_refer_to_each_other(write, tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: config.yaml")
    refused(write("_BASE_: a.yaml"), "refer to each other, or are more than 7")
    refused(write("_BASE_: config.yaml"), "refer to each other")


def test_bases_that_multiply(write, tmp_path):
    for level in range(8):
        (tmp_path / f"{level}.yaml").write_text(f"_BASE_: [{level + 1}.yaml, {level + 1}.yaml]")
    refused(write("_BASE_: 0.yaml"), "refer to each other, or are more than 7")


def test_value_that_its_base_has_as_a_mapping(write, tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: 5")
    refused(write(f"_BASE_: a.yaml\n{LEAF}"), "'MODEL' is a value in its _BASE_")


def test_config_of_version_1(write):
    stock = get_cfg()
    old = downgrade_config(stock, 1)
    old.MODEL.RPN.ANCHOR_SIZES = [[16, 32]]
    old.MODEL.ROI_HEADS.SCORE_THRESH = 0.25
    old.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg = load_config(write(old.dump()))
    assert cfg.VERSION == 2
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[16, 32]]
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.25
    partial = "MODEL: {WEIGHT: x, ROI_HEADS: {NAME: StandardROIHeads, NMS: 0.4}}"
    assert load_config(write(partial)).MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.4


@pytest.mark.parametrize("text", ["VERSION: true", "VERSION: 0", "VERSION: 2.0", "VERSION: '2'"])
def test_versions_that_do_not_exist(write, text):
    refused(write(text), "is neither 1 nor 2")


def test_lazy_configs_are_not_executed(tmp_path, write, canary):
    path = tmp_path / "config.py"
    path.write_text(f"open({str(canary)!r}, 'w')")
    refused(path, "a LazyConfig, which is Python")
    refused(write("model: {_target_: os.system, command: ls}"), "its model is 'os.system', which")
    with pytest.raises(CheckpointError, match=r"config\.py: a LazyConfig, which is"):
        load_config(write("_BASE_: config.py"))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [1]\nb: {<<: {x: 1}}", "uses the tag 'merge'"),
        ("a: 2020-01-01", "uses the tag 'timestamp'"),
        ("a: !!binary aGk=", "uses the tag 'binary'"),
        ("a: !!set {b}", "uses the tag 'set'"),
        ("a: " + "1:" * 1000 + "1", "a value of 2001 characters"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 50 levels"),
        ("a: *b", "undefined alias"),
        ("{? [1]: 2}", "unhashable"),
    ],
)
def test_yaml_beyond_plain_values(write, text, reason):
    refused(write(text), f"not a plain YAML config: .*{reason}")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", 10**9, "is 1000000000; at most 100000 is allowed"),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 10**8, "is 100000000; at most 65536"),
        ("MODEL.ROI_BOX_HEAD.NUM_CONV", 10**6, "at most 64"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5000, "at most 64"),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 5000, "at most 32"),
        ("MODEL.RPN.CONV_DIMS", [10**9], "at most 65536"),
        ("MODEL.RPN.CONV_DIMS", [1] * 2000, "has 2000 items; at most 1000"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 10**7, "at most 20000"),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", 10**7, "at most 50000"),
        ("MODEL.TINY_RESNET.BLOCKS", [1, 1, 1, 10**6], "at most 100"),
        ("INPUT.MIN_SIZE_TEST", 10**6, "at most 4096"),
        ("INPUT.MAX_SIZE_TEST", 10**6, "at most 8192"),
        ("TEST.DETECTIONS_PER_IMAGE", 10**9, "at most 10000"),
        ("MODEL.RPN.NMS_THRESH", float("inf"), "is inf"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 1 << 3000, "an integer of 3001 bits"),
    ],
    ids=range(15),
)
def test_sizes_that_no_detector_has(make_tiny_cfg, write, key, value, reason):
    content = yaml.safe_load(make_tiny_cfg().dump())
    node = content
    *parts, last = key.split(".")
    for part in parts:
        node = node[part]
    node[last] = value
    text = yaml.safe_dump(content)
    path = write(text)
    start = time.process_time()
    refused(path, f"{key}.* {reason}")
    assert time.process_time() - start < 1


def test_anchors_multiply(make_tiny_cfg, write):
    cfg = make_tiny_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8, 16], [32]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0], [1.0] * 501]
    refused(write(cfg.dump()), "asks for 1002 anchors at each place; at most 1000 are allowed")


def test_defaults_are_within_the_limits():
    cfg = get_d2defense_cfg()
    assert find_excess(cfg) is None
    assert find_unknown_name(cfg) is None


def test_most_of_the_zoo_is_read():
    refusals = {}
    for name in zoo_configs():
        try:
            load_config(zoo_config(name), trusted=True)
        except CheckpointError as error:
            refusals[name] = error.reason
    assert len(refusals) < len(zoo_configs()) / 2
    single_stage = ("retinanet", "RetinaNet", "rpn", "semantic", "anoptic", "/fast_rcnn", "mmdet")
    assert all(any(part in name for part in single_stage) for name in refusals), refusals


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RPN.LOSS_WEIGHT", 0.0),
        ("ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 1e6),
        ("ROI_HEADS.IOU_LABELS", [-1, -1]),
        ("ROI_HEADS.IOU_THRESHOLDS", [1.5]),
        ("ROI_HEADS.POSITIVE_FRACTION", 0.0),
        ("RPN.BATCH_SIZE_PER_IMAGE", 0),
        ("RPN.IOU_LABELS", [0, -1, -1]),
        ("RETINANET.FOCAL_LOSS_ALPHA", 0.0),
        ("RETINANET.FOCAL_LOSS_GAMMA", 100.0),
        ("ROI_DOUBLE_HEAD.HEAD_WEIGHTS", [0.0, 2.5]),
    ],
)
def test_training_by_which_a_twin_would_learn_nothing(make_tiny_cfg, write, key, value):
    refused(write(make_tiny_cfg(f"MODEL.{key}", value).dump()), f"MODEL.{key} is .*fine-tuning")


def test_every_detector_of_the_zoo_can_be_trained():
    read = []
    for name in zoo_configs():
        with contextlib.suppress(CheckpointError):
            read.append(load_config(zoo_config(name), trusted=True))
    assert len(read) > 50
    assert [find_untrainable(cfg) for cfg in read] == [None] * len(read)


def test_a_described_detector_must_be_trainable_too():
    cfg = get_base_cfg()
    cfg.MODEL.DESCRIPTION = '{"proposal_generator": {"loss_weight": {"cls": 0, "loc": 1}}}'
    assert "loss_weight.cls is 0" in find_untrainable(cfg)
    cfg.MODEL.DESCRIPTION = '{"proposal_generator": {"loss_weight": 0}}'
    assert "model.proposal_generator.loss_weight is 0" in find_untrainable(cfg)
    cfg.MODEL.DESCRIPTION = '{"anchor_matcher": {"labels": [-1, -1, -1]}}'
    assert "labels is [-1, -1, -1]" in find_untrainable(cfg)
