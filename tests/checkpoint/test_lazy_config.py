# SPDX-License-Identifier: Apache-2.0
"""LazyConfigs: the same detector as Detectron2's, and nothing but a detector."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from d2defense.checkpoint import CheckpointError, build_detector, load_config
from d2defense.checkpoint.config import read_config_file
from d2defense.config.zoo import zoo_config, zoo_configs
from d2defense.modeling import number_of_classes
from d2defense.workflows.configs import publish_config


def small(name: str):
    """A LazyConfig of Detectron2's own, with a small backbone."""
    cfg = LazyConfig.load(model_zoo.get_config_file(f"common/models/{name}.py"))
    stages = cfg.model.backbone.bottom_up.stages
    stages.depth = 18
    stages.pop("stride_in_1x1")
    cfg.model.backbone.out_channels = 16
    if name in ("mask_rcnn_fpn", "cascade_rcnn"):
        cfg.model.proposal_generator.head.in_channels = 16
        cfg.model.roi_heads.num_classes = 5
        heads = cfg.model.roi_heads
        for head in heads.get("box_heads") or [heads.box_head]:
            head.input_shape.channels, head.fc_dims = 16, [32]
        for predictor in heads.get("box_predictors") or [heads.box_predictor]:
            predictor.input_shape.channels, predictor.test_score_thresh = 32, 0.0
        heads.mask_head.input_shape.channels, heads.mask_head.conv_dims = 16, [16]
    else:
        cfg.model.num_classes = 5
        cfg.model.head.conv_dims = [16]
        cfg.model.test_score_thresh = 0.0
        for shape in cfg.model.head.input_shape:
            shape.channels = 16
        if name == "fcos":
            cfg.model.head.norm = ""
        top = cfg.model.backbone.top_block
        top.in_channels = 16 if name == "fcos" else 512
    return cfg


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "cascade_rcnn", "retinanet", "fcos"])
def test_a_saved_lazy_config_is_detectron2s_own_detector(name, tmp_path):
    cfg = small(name)
    cfg.dataloader = {"test": {"mapper": {"augmentations": [
        {"_target_": "detectron2.data.transforms.ResizeShortestEdge",
         "short_edge_length": 64, "max_size": 96}]}}}  # fmt: skip
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    torch.manual_seed(0)
    stock = instantiate(copy.deepcopy(cfg.model)).eval()
    with torch.no_grad():
        for key, value in stock.named_parameters():
            if "score" in key and value.dim() > 1:
                value.normal_(0, 0.5)
    torch.save({"model": stock.state_dict()}, tmp_path / "model_final.pth")
    ours, read = build_detector(tmp_path / "model_final.pth", tmp_path / "config.yaml", "cpu")
    assert number_of_classes(read) == 5
    assert (read.INPUT.MIN_SIZE_TEST, read.INPUT.MAX_SIZE_TEST) == (64, 96)
    assert ("rcnn" in name) == read.MODEL.MASK_ON
    image = torch.rand(3, 64, 96) * 255
    (expected,), (found,) = (model([{"image": image}]) for model in (stock, ours))
    expected, found = expected["instances"], found["instances"]
    assert len(expected)
    assert torch.equal(expected.pred_boxes.tensor, found.pred_boxes.tensor)
    assert torch.equal(expected.scores, found.scores)
    probe = ours.probe([{"image": image}])
    assert probe.class_logits.shape[1] == 6


def test_every_lazy_config_of_the_zoo_with_a_model_can_be_named():
    names = [name for name in zoo_configs() if name.endswith(".py")]
    assert "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py" in names
    assert not any("data/" in name or "optim" in name for name in names)
    assert zoo_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ") is not None


@pytest.mark.parametrize(
    "name",
    ["mask_rcnn_R_50_FPN_100ep_LSJ", "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ"],
)
def test_new_baselines_have_detectron2s_own_tensors(name, tmp_path):
    path = zoo_config(f"new_baselines/{name}")
    cfg = load_config(path, trusted=True)
    # A repaired checkpoint has the same detector in plain YAML beside it.
    publish_config(path, tmp_path / "config.yaml", trusted=True)
    again = load_config(tmp_path / "config.yaml")
    assert json.loads(again.MODEL.DESCRIPTION) == json.loads(cfg.MODEL.DESCRIPTION)
    with torch.device("meta"):
        again.MODEL.DEVICE = "meta"
        ours = build_model(again)
        stock = instantiate(LazyConfig.load(str(path)).model)
    shapes = {key: value.shape for key, value in stock.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def test_python_is_run_from_the_installed_zoo_alone(tmp_path):
    path = tmp_path / "config.py"
    shutil.copyfile(zoo_config("common/models/retinanet"), path)
    for trusted in (False, True):
        with pytest.raises(CheckpointError, match="would have to be executed"):
            load_config(path, trusted)
    with pytest.raises(CheckpointError, match="would have to be executed"):
        load_config(zoo_config("common/models/retinanet"))


@pytest.fixture
def changed(tmp_path):
    """Function from a change of a small LazyConfig's model to the file of it."""
    LazyConfig.save(small("mask_rcnn_fpn"), str(tmp_path / "saved.yaml"))
    content = read_config_file(tmp_path / "saved.yaml").content

    def change(edit):
        edit(content["model"])
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return change


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.update(_target_="os.system"), "which is no detector that can be probed"),
        (lambda m: m["backbone"].update(_target_="torch.hub.load"), "'torch.hub.load', which is"),
        (lambda m: m["roi_heads"].update(box_head={"_name_": "os.system"}), "'os.system', which"),
        (lambda m: m.update(vis_period="${oc.env:HOME}"), "refers to no value"),
        (lambda m: m.update(vis_period="${.vis_period}"), "refers to no value"),
        (
            lambda m: m["roi_heads"]["box_predictor"].update(num_classes=7),
            "different numbers of classes",
        ),
        (lambda m: m["roi_heads"].update(num_classes=10**6), "num_classes is larger than 100000"),
        (lambda m: m["roi_heads"]["box_head"].update(conv_dims=[8] * 99), "at most 64 are allowed"),
        (
            lambda m: m["roi_heads"]["box_head"].update(input_shape="large"),
            "no model can be built from it",
        ),
        (lambda m: m["roi_heads"].update(secret=1), "no model can be built from it: TypeError"),
        (lambda m: m["backbone"].update(norm="os"), "no model can be built from it"),
    ],
)
def test_what_is_no_detector_is_refused_in_one_line(changed, tmp_path, edit, reason):
    path = changed(edit)
    (tmp_path / "model_final.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=reason) as caught:
        build_detector(tmp_path / "model_final.pth", path, "cpu")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unchanged_one_is_not_refused(changed):
    assert number_of_classes(load_config(changed(lambda model: None))) == 5
