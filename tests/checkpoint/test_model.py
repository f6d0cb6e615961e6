# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle
import re
import shutil
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from safetensors.torch import save_file

from d2defense.checkpoint import (
    CheckpointError,
    SizeLimits,
    build_detector,
    load_config,
    load_state_dict,
    nonfinite_tensors,
    save_state_dict,
)
from d2defense.checkpoint.size import activation_bytes
from d2defense.config.zoo import zoo_config
from d2defense.modeling import InstrumentedRCNN


@pytest.fixture
def folder(untrained_checkpoint, tmp_path):
    return shutil.copytree(untrained_checkpoint, tmp_path / "model")


def build(folder, **arguments):
    return build_detector(folder / "model_final.pth", folder / "config.yaml", **arguments)


@pytest.mark.parametrize("named", ["mps", "xpu", "cuda:7"])
def test_a_config_that_names_a_device_which_is_not_here(folder, named):
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["MODEL"]["DEVICE"] = named
    path.write_text(yaml.safe_dump(content))
    model, cfg = build(folder, device="cpu")
    assert model.device.type == cfg.MODEL.DEVICE == "cpu"
    if not named.startswith("cuda"):
        with pytest.raises(CheckpointError, match=f"'{named}'; known are cpu and cuda.*--device"):
            build(folder)


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


OBSOLETE = ["pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0"]


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_buffers_of_older_detectron2_releases(folder, dtype, suffix):
    buffers = dict(build(folder)[0].named_buffers())
    state = load_state_dict(folder / "model_final.pth")
    state |= {name: buffers[name].to(dtype) for name in OBSOLETE}
    path = folder / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"model": state}, path)
    else:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        content = {"model": arrays, "__author__": "Detectron2", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content))
    model, _ = build_detector(path, folder / "config.yaml")
    assert all(torch.equal(model.get_buffer(name), buffers[name]) for name in OBSOLETE)


@pytest.mark.parametrize(
    "change", [lambda t: t + 0.5, lambda t: torch.cat([t, t]), lambda t: t * torch.nan]
)
@pytest.mark.parametrize("name", OBSOLETE)
def test_a_detector_that_is_another_one_in_older_detectron2_releases(folder, name, change):
    buffers = dict(build(folder)[0].named_buffers())
    change_state(folder, lambda state: state.update({name: change(buffers[name])}))
    refused(folder, "model_final.pth", f"its {name} is not that of the config; older releases")


def test_names_of_data_parallel(folder):
    state = load_state_dict(folder / "model_final.pth")
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": parallel}, folder / "model_final.pth")
    model, _ = build(folder)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_another_set_of_weights_in_the_file(folder):
    state = load_state_dict(folder / "model_final.pth")
    average = {name: tensor / 2 for name, tensor in state.items()}
    torch.save({"model": state, "ema_state": average}, folder / "model_final.pth")
    for member, expected in ((None, state), ("ema_state", average)):
        loaded = build(folder, member=member)[0].state_dict()
        name = "roi_heads.box_predictor.cls_score.weight"
        assert torch.equal(loaded[name], expected[name])


def test_modules_convert_the_tensors_of_their_older_versions(folder, monkeypatch):
    seen = {}
    head = type(build(folder)[0].roi_heads.box_head)

    def load(self, state, prefix, local_metadata, *rest):
        seen[prefix] = local_metadata.get("version")
        return torch.nn.Module._load_from_state_dict(self, state, prefix, local_metadata, *rest)

    monkeypatch.setattr(head, "_load_from_state_dict", load, raising=False)
    state = OrderedDict(load_state_dict(folder / "model_final.pth"))
    for version in (None, 7):
        if version:
            state._metadata = {"roi_heads.box_head": {"version": version}}
        torch.save({"model": state}, folder / "model_final.pth")
        build(folder)
        assert seen == {"roi_heads.box_head.": version}


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
    refused(folder, "model_final.pth", "holds a sparse tensor")


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["RPN"].update(IN_FEATURES=["p9"]),
        lambda node: node["ROI_HEADS"].update(NUM_CLASSES=-5),
        lambda node: node.update(PIXEL_MEAN=[]),
        lambda node: node["TINY_RESNET"].update(BLOCKS=[1]),
    ],
    ids=["features", "classes", "mean", "blocks"],
)
def test_config_from_which_no_model_can_be_built(folder, change):
    change_config(folder, change)
    refused(folder, "config.yaml", "no model can be built from it")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda node: node["BACKBONE"].update(NAME="no_such"), "MODEL.BACKBONE.NAME is 'no_such'"),
        (lambda node: node["ROI_BOX_HEAD"].update(POOLER_TYPE="No"), "POOLER_TYPE is 'No'; known"),
        (lambda node: node["RESNETS"].update(NORM="eval"), "MODEL.RESNETS.NORM is 'eval'; known"),
        (lambda node: node.update(DEVICE="toaster"), "MODEL.DEVICE is 'toaster'"),
        (lambda node: node.update(DEVICE="meta"), "MODEL.DEVICE is 'meta'"),
        (lambda node: node.update(DEVICE=None), "MODEL.DEVICE is 'None'"),
    ],
)
def test_names_that_are_not_known(folder, change, reason):
    change_config(folder, change)
    refused(folder, "config.yaml", reason)


def test_only_entries_of_detectron2_and_d2defense_may_be_named(folder):
    @BACKBONE_REGISTRY.register()
    def build_from_elsewhere(cfg, input_shape):
        raise AssertionError("an untrusted config chose this")

    try:
        change_config(folder, lambda node: node["BACKBONE"].update(NAME="build_from_elsewhere"))
        refused(folder, "config.yaml", "MODEL.BACKBONE.NAME is 'build_from_elsewhere'")
    finally:
        del BACKBONE_REGISTRY._obj_map["build_from_elsewhere"]


def test_a_model_that_the_file_cannot_fill_is_never_allocated(folder):
    def grow(node):
        node["ROI_BOX_HEAD"].update(FC_DIM=30_000, NUM_FC=2)

    change_config(folder, grow)
    start = time.process_time()
    refused(folder, "model_final.pth", "another shape than the config says")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (SizeLimits(parameters=1000), r"asks for \d+ parameters; at most 1000 are allowed"),
        (SizeLimits(activation_bytes=1000), r"makes \d+ bytes of activations; at most 1000"),
    ],
)
def test_limits_of_the_caller(folder, limits, reason):
    with pytest.raises(CheckpointError, match=reason):
        build(folder, limits=limits)


def test_activations_are_counted_without_computing_them(folder):
    model, cfg = build(folder)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 128, 128
    model.proposal_generator.post_nms_topk[False] = 0
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.numel() * 4

    for module in [*model.backbone.modules(), *model.proposal_generator.rpn_head.modules()]:
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, 128, 128))
        names = model.proposal_generator.in_features
        model.proposal_generator.rpn_head([features[name] for name in names])
    skeleton = copy.deepcopy(model).to("meta")
    counted_before, counted = counted, 0
    assert activation_bytes(skeleton, cfg) == counted_before > 0


def test_every_size_is_estimated_for_the_zoo(tmp_path):
    cfg = load_config(zoo_config("COCO-Detection/faster_rcnn_R_50_FPN_1x"), trusted=True)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        skeleton = build_model(cfg)
    # Its backbone alone makes 0.9 GB at 800 by 1333 pixels.
    assert 9e8 < activation_bytes(skeleton, cfg) < 3e9


FORMATS = {
    "safetensors": lambda state, path: save_file(state, path),
    "pkl": lambda state, path: path.write_bytes(
        pickle.dumps(
            {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2"}
        )
    ),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats(folder, suffix):
    state = load_state_dict(folder / "model_final.pth")
    path = folder / f"model.{suffix}"
    FORMATS[suffix](state, path)
    model, _ = build_detector(path, folder / "config.yaml")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def caffe2_name(name: str) -> str:
    """What Detectron calls a tensor of the tiny detector."""
    name = name.removeprefix("backbone.").removeprefix("bottom_up.").removeprefix("stem.")
    name = name.removeprefix("roi_heads.").removeprefix("box_predictor.")
    for pattern, replacement in (
        (r"fpn_lateral(\d)\.", r"fpn_inner_res\1_0_sum_lateral."),
        (r"fpn_output(\d)\.", r"fpn_res\1_0_sum."),
        (r"proposal_generator\.rpn_head\.conv\.", "conv_rpn_fpn2."),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_bbox_pred_fpn2."),
        (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn_cls_logits_fpn2."),
        (r"box_head\.fc1\.", "fc6."),
        (r"box_head\.fc2\.", "fc7."),
        (r"\.conv1\.", ".branch2a."),
        (r"\.conv2\.", ".branch2b."),
        (r"\.shortcut\.", ".branch1."),
        (r"norm\.weight$", "bn_s"),
        (r"norm\.bias$", "bn_b"),
        (r"weight$", "w"),
        (r"bias$", "b"),
    ):
        name = re.sub(pattern, replacement, name)
    return name.replace(".", "_")


def to_caffe2(state):
    arrays = {}
    for name, tensor in state.items():
        if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked"):
            continue
        if "cls_score" in name:  # background comes first
            tensor = torch.cat([tensor[-1:], tensor[:-1]])
        elif "bbox_pred" in name:
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        arrays[caffe2_name(name)] = tensor.numpy()
    return arrays


@pytest.mark.parametrize("wrap", [lambda blobs: {"blobs": blobs}, lambda blobs: blobs])
def test_detectors_of_the_first_detectron(folder, wrap):
    state = load_state_dict(folder / "model_final.pth")
    blobs = to_caffe2(state) | {"fc1000_w": np.zeros((2, 2), "f4"), "x_momentum": np.zeros(1)}
    (folder / "model.pkl").write_bytes(pickle.dumps(wrap(blobs), protocol=2))
    model, _ = build_detector(folder / "model.pkl", folder / "config.yaml")
    parameters = dict(model.named_parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in parameters.items())


def test_a_detector_that_alignment_leaves_incomplete(folder, caplog):
    blobs = to_caffe2(load_state_dict(folder / "model_final.pth"))
    del blobs["fc7_w"]
    blobs["fc6_b"] = np.zeros(3, "f4")
    (folder / "model.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors, first roi_heads\.box_head"):
        build_detector(folder / "model.pkl", folder / "config.yaml")
    assert not caplog.records


def test_weights_that_are_no_numbers_are_loaded_and_named(folder):
    key = "roi_heads.box_head.fc1.bias"
    change_state(folder, lambda state: state[key].__setitem__(0, float("nan")))
    model, _ = build(folder)
    assert nonfinite_tensors(model.state_dict()) == [key]
