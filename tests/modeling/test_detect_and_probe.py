# SPDX-License-Identifier: Apache-2.0
"""Stock detections and the probe from one pass over the network, for every kind of detector."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from d2defense.modeling import ProbeOutput, instrument_config
from model_zoo_parity import random_images

SIZES = ((128, 128), (96, 64), (70, 120))
PROBED = ("proposal_boxes", "objectness_logits", "proposal_offsets")


@pytest.fixture
def batch():
    """Images whose detections are rescaled to that of a larger file."""
    return [
        {**image, "height": 2 * image["image"].shape[1], "width": 3 * image["image"].shape[2]}
        for image in random_images(SIZES)
    ]


def assert_same(ours: Instances, theirs: Instances) -> None:
    assert ours.image_size == theirs.image_size
    assert ours.get_fields().keys() == theirs.get_fields().keys()
    for name, value in theirs.get_fields().items():
        value, got = (getattr(v, "tensor", v) for v in (value, ours.get(name)))
        assert torch.equal(got, value), name


def assert_detects_and_probes(cfg, build_random, batch, field=None) -> None:
    stock = build_random(cfg)
    model = build_model(instrument_config(cfg)).eval()
    model.load_state_dict(stock.state_dict(), strict=True)
    detections, probe = model.detect_and_probe(batch)
    with torch.no_grad():
        expected = stock(batch)
    assert sum(len(output["instances"]) for output in expected) > 20
    for ours, theirs in zip(detections, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert_same(ours["instances"], theirs["instances"])
        assert field is None or ours["instances"].has(field)
    alone = model.probe(batch)
    assert all(torch.equal(getattr(probe, name), getattr(alone, name)) for name in PROBED)
    assert probe.image_sizes == alone.image_sizes
    assert len(probe.classifier_logits) == len(alone.classifier_logits)
    for ours, theirs in zip(probe.classifier_logits, alone.classifier_logits, strict=True):
        assert torch.equal(ours, theirs)
    # Nothing goes on listening.
    assert not any(module._forward_hooks for module in model.modules())


def test_both_from_one_pass(any_stock_cfg, build_random, batch):
    assert_detects_and_probes(any_stock_cfg, build_random, batch)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8), "pred_masks"),
        (
            ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]),
            "pred_keypoints",
        ),
    ],
)
def test_masks_and_keypoints_are_predicted_too(
    make_stock_cfg, build_random, batch, overrides, field
):
    cfg = make_stock_cfg("faster_rcnn_tiny_fpn", *overrides)
    assert_detects_and_probes(cfg, build_random, batch, field)


def test_training_mode_is_refused_and_leaves_no_hook(make_stock_cfg, build_random, batch):
    cfg = make_stock_cfg("faster_rcnn_tiny_fpn")
    model = build_random(instrument_config(cfg))
    with pytest.raises(RuntimeError, match="eval mode"):
        model.train().detect_and_probe(batch)
    with pytest.raises(KeyError):
        model.eval().detect_and_probe([{"no image": 1}])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_probe_is_split_into_images_and_joined_again(make_stock_cfg, build_random, batch):
    model = build_random(instrument_config(make_stock_cfg("cascade_rcnn_tiny_fpn")))
    probe = model.probe(batch, with_detections=True)
    parts = probe.split()
    assert [part.image_sizes for part in parts] == [[size] for size in SIZES]
    assert [part.detections for part in parts] == [[found] for found in probe.detections]
    joined = ProbeOutput.join(parts)
    for name in PROBED:
        assert torch.equal(getattr(joined, name), getattr(probe, name))
    for ours, theirs in zip(joined.classifier_logits, probe.classifier_logits, strict=True):
        assert torch.equal(ours, theirs)
    # Every image on its own is what it is in a batch.
    rows = probe.proposal_offsets.diff().tolist()
    assert [len(part.class_logits) for part in parts] == rows
    assert all(
        part.proposal_offsets.tolist() == [0, n] for part, n in zip(parts, rows, strict=True)
    )
