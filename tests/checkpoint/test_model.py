# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from d2defense.checkpoint import (
    CheckpointError,
    build_detector,
    load_state_dict,
    save_state_dict,
)
from d2defense.modeling import InstrumentedRCNN


@pytest.fixture
def folder(untrained_checkpoint, tmp_path):
    return shutil.copytree(untrained_checkpoint, tmp_path / "model")


def build(folder, **arguments):
    return build_detector(folder / "model_final.pth", folder / "config.yaml", **arguments)


def change_state(folder, change) -> None:
    state = load_state_dict(folder / "model_final.pth")
    change(state)
    torch.save({"model": state}, folder / "model_final.pth")


def change_config(folder, change) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    change(content["MODEL"])
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def refused(folder, at: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        build(folder)
    assert str(caught.value).startswith(f"{folder / at}: ")
    assert "\n" not in str(caught.value)


def test_detector_with_the_weights_of_the_file(folder):
    model, cfg = build(folder)
    assert isinstance(model, InstrumentedRCNN)
    assert not model.training
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
    stored = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_half_precision_files_make_single_precision_models(folder):
    state = load_state_dict(folder / "model_final.pth")
    save_state_dict(folder / "model_final.pth", state, torch.float16)
    model, _ = build(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    loaded = model.state_dict()
    assert all(
        torch.equal(loaded[name], tensor.half().to(tensor.dtype)) for name, tensor in state.items()
    )


def test_config_that_asks_for_a_gpu_runs_without_one(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    change_config(folder, lambda node: node.update(DEVICE="cuda"))
    model, cfg = build(folder)
    assert model.device.type == cfg.MODEL.DEVICE == "cpu"


def test_stock_checkpoint(folder, make_tiny_cfg):
    cfg = make_tiny_cfg(
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    )  # fmt: skip
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    assert isinstance(build(folder)[0], InstrumentedRCNN)


def test_buffers_of_older_detectron2_releases_are_ignored(folder):
    def add(state):
        state["pixel_mean"] = torch.zeros(3, 1, 1)
        state["pixel_std"] = torch.ones(3, 1, 1)
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)

    change_state(folder, add)
    model, _ = build(folder)
    assert model.pixel_mean.abs().sum() > 0


def test_shapes_that_differ_from_the_config(folder):
    change_config(folder, lambda node: node["ROI_HEADS"].update(NUM_CLASSES=3))
    refused(folder, "model_final.pth", r"tensors have another shape .*\(8, 128\).*\(4, 128\)")


def test_missing_tensors(folder):
    change_state(folder, lambda state: state.pop("roi_heads.box_predictor.cls_score.bias"))
    refused(folder, "model_final.pth", "lacks 1 tensors, first roi_heads.box_predictor.cls_score")


def test_unexpected_tensors(folder):
    change_state(folder, lambda state: state.update({"backdoor.weight": torch.ones(2)}))
    refused(folder, "model_final.pth", "has beyond the config 1 tensors, first backdoor.weight")


def test_tensors_that_are_not_dense(folder):
    key = "roi_heads.box_head.fc1.weight"
    change_state(folder, lambda state: state.update({key: state[key].to_sparse()}))
    refused(folder, "model_final.pth", "between dense and sparse")


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["BACKBONE"].update(NAME="no_such_backbone"),
        lambda node: node["ROI_BOX_HEAD"].update(POOLER_TYPE="NoSuchPooler"),
        lambda node: node["RPN"].update(IN_FEATURES=["p9"]),
        lambda node: node["ROI_HEADS"].update(NUM_CLASSES=-5),
        lambda node: node.update(PIXEL_MEAN=[]),
        lambda node: node.update(DEVICE="toaster"),
        lambda node: node.update(DEVICE=None),
        lambda node: node["TINY_RESNET"].update(BLOCKS=[1]),
    ],
    ids=["backbone", "pooler", "features", "classes", "mean", "device", "no device", "blocks"],
)
def test_config_from_which_no_model_can_be_built(folder, change):
    change_config(folder, change)
    refused(folder, "config.yaml", "no model can be built from it")
