# SPDX-License-Identifier: Apache-2.0
"""The suspect after fine-tuning on clean images, for every kind of detector."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from detectron2.modeling import build_model

from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.detection.twin import TwinError, TwinSettings, fine_tuned_twin
from d2defense.modeling import instrument_config

KINDS = {
    "faster_rcnn_tiny_c4": (),
    "faster_rcnn_tiny_fpn": (),
    "mask_rcnn_tiny_fpn": (),
    "double_head_rcnn_tiny_fpn": (),
    "cascade": (
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ),
}
FEW = TwinSettings(steps=2, batch_size=2)


@pytest.fixture
def build():
    """A function from a kind to a detector of random weights."""

    def make(kind="faster_rcnn_tiny_fpn", *overrides):
        cfg = get_d2defense_cfg()
        file = "faster_rcnn_tiny_fpn" if kind == "cascade" else kind
        merge_config_file(cfg, config_root() / "SynthSigns" / f"{file}.yaml")
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *KINDS[kind], *overrides])
        torch.manual_seed(0)
        return build_model(instrument_config(cfg)).eval()

    return make


def state(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_fine_tuned_but_for_what_clean_boxes_do_not_teach(kind, build, clean_images):
    suspect = build(kind)
    before = state(suspect)
    images = list(clean_images(4))
    told = []
    twin = fine_tuned_twin(suspect, images, FEW, lambda: told.append(1))
    after = state(twin)
    assert len(told) == 2
    assert all(torch.equal(before[name], each) for name, each in suspect.state_dict().items())
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    trained = {name for name, _ in suspect.named_parameters() if ".mask_head." not in name}
    assert moved == trained
    assert not twin.training
    assert twin.roi_heads.training is False
    assert not any(each.requires_grad for each in twin.parameters())
    assert getattr(twin.roi_heads, "mask_on", False) == getattr(suspect.roi_heads, "mask_on", False)
    output = twin.probe([{"image": images[0].image}], with_detections=True)
    assert torch.isfinite(output.class_logits).all()


def test_what_a_configuration_freezes_is_trained_too(build, clean_images):
    suspect = build()
    frozen = [each.requires_grad_(False) for each in suspect.backbone.parameters()]
    before = [each.clone() for each in frozen]
    twin = fine_tuned_twin(suspect, list(clean_images(2)), FEW)
    pairs = zip(before, twin.backbone.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


def test_one_seed_gives_one_twin(build, clean_images):
    suspect, images = build(), list(clean_images(4))
    torch.manual_seed(5)
    first = state(fine_tuned_twin(suspect, images, FEW))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)  # nobody else's random numbers are used up
    again = state(fine_tuned_twin(suspect, images, FEW))
    other = state(fine_tuned_twin(suspect, images, dataclasses.replace(FEW, seed=1)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_images_larger_than_fit_at_once_make_the_same_step(build, clean_images, monkeypatch):
    """Gradients of parts are summed; Detectron2 draws its samples anew for each part."""
    suspect, images = build(), list(clean_images(2))
    sizes = []
    forward = type(suspect).forward

    def counted(self, batch):
        sizes.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(type(suspect), "forward", counted)
    fine_tuned_twin(suspect, images, FEW)
    monkeypatch.setattr("d2defense.detection.twin._PIXELS_AT_ONCE", 1)
    fine_tuned_twin(suspect, images, FEW)
    assert sizes == [2, 2, 1, 1, 1, 1]


def test_what_cannot_be_trained_is_said(build, clean_images):
    images = list(clean_images(2))
    suspect = build()
    with torch.no_grad():
        suspect.roi_heads.box_predictor.cls_score.weight.fill_(float("nan"))
    with pytest.raises(TwinError, match="not finite"):
        fine_tuned_twin(suspect, images, FEW)
    suspect = build()
    with torch.no_grad():
        suspect.proposal_generator.rpn_head.anchor_deltas.weight.fill_(float("nan"))
    with pytest.raises(TwinError, match="not finite"):
        fine_tuned_twin(suspect, images, FEW)
    unknown = [
        dataclasses.replace(each, classes=torch.full_like(each.classes, -1)) for each in images
    ]
    with pytest.raises(TwinError, match="no image shows an object of a known class"):
        fine_tuned_twin(build(), unknown, FEW)
