# SPDX-License-Identifier: Apache-2.0
"""Every kind of ROI heads: one way to probe them, each with module groups of its own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2defense.modeling import (
    classification_modules,
    instrument_config,
    module_group_parameters,
    resettable_modules,
)
from model_zoo_parity import compare, random_images

SIZES = ((128, 128), (96, 64), (70, 120))


@pytest.fixture
def twins(any_stock_cfg, build_random):
    stock = build_random(any_stock_cfg)
    instrumented = build_model(instrument_config(any_stock_cfg)).eval()
    instrumented.load_state_dict(stock.state_dict(), strict=True)
    return stock, instrumented


def test_detects_and_is_probed_as_the_stock_modules_say(twins):
    stock, instrumented = twins
    difference, detections, proposals = compare(stock, instrumented, random_images(SIZES))
    assert difference == ""
    assert detections > 20
    assert proposals > 20


def test_training_losses_are_the_same(twins):
    batch = []
    for image in random_images(SIZES):
        height, width = image["image"].shape[1:]
        target = Instances((height, width))
        target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 50, 60], [20, 30, 60, 70]]))
        target.gt_classes = torch.tensor([1, 4])
        target.gt_masks = BitMasks(torch.ones(2, height, width, dtype=torch.bool))
        batch.append({"image": image["image"], "instances": target})
    losses = []
    for model in twins:
        model.train()
        torch.manual_seed(3)
        with EventStorage():
            losses.append(model(batch))
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) >= 4
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_each_image_of_a_batch_is_probed_as_if_alone(twins):
    _, model = twins
    batch = random_images(((96, 96), (96, 96)))
    together = model.probe(batch)
    offsets = together.proposal_offsets.tolist()
    assert offsets[-1] == len(together.class_logits)
    for image, (start, end) in zip(batch, pairwise(offsets), strict=True):
        alone = model.probe([image])
        for ours, theirs in zip(together.classifier_logits, alone.classifier_logits, strict=True):
            torch.testing.assert_close(ours[start:end], theirs, rtol=1e-3, atol=1e-3)


def test_detections_from_a_score_on_are_the_stock_ones_of_that_score(twins):
    stock, model = twins
    batch = random_images(SIZES)
    with torch.no_grad():
        expected = stock.inference(batch, do_postprocess=False)
    score = torch.cat([found.scores for found in expected]).median().item()
    got = model.probe(batch, with_detections=True, score_threshold=score).detections
    assert sum(map(len, got)) < sum(map(len, expected))
    for theirs, ours in zip(expected, got, strict=True):
        theirs = theirs[theirs.scores >= score]
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)
    # And the model is left as it was.
    assert sum(map(len, model.probe(batch, with_detections=True).detections)) == sum(
        map(len, expected)
    )


def test_a_configuration_hides_no_detections_from_who_asks_from_a_score_on(twins):
    """One that keeps a few sure ones would hide ghosts behind the objects."""
    _, model = twins
    batch = random_images(SIZES)
    expected = model.probe(batch, with_detections=True, score_threshold=0.2).detections
    deployed = model.probe(batch, with_detections=True).detections
    predictors = [each for each in model.modules() if hasattr(each, "test_topk_per_image")]
    for each in predictors:
        each.test_topk_per_image, each.test_score_thresh = 1, 0.9
    got = model.probe(batch, with_detections=True, score_threshold=0.2).detections
    assert sum(map(len, got))
    for theirs, ours in zip(expected, got, strict=True):
        assert torch.equal(ours.scores, theirs.scores)
    few = model.probe(batch, with_detections=True).detections
    assert sum(map(len, few)) < sum(map(len, deployed))
    assert {(each.test_topk_per_image, each.test_score_thresh) for each in predictors} == {(1, 0.9)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probes_in_half_precision(twins, dtype):
    _, model = twins
    batch = random_images(SIZES)
    expected = model.probe(batch)
    with torch.autocast("cpu", dtype=dtype):
        got = model.probe(batch, with_detections=True)
    for tensor in (got.proposal_boxes, got.objectness_logits, *got.classifier_logits):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    assert got.image_sizes == expected.image_sizes == list(SIZES)
    assert len(got.detections) == 3
    # The best proposal of each image stays where it is, within what the precision allows.
    for start in expected.proposal_offsets[:-1].tolist():
        torch.testing.assert_close(
            got.objectness_logits[start], expected.objectness_logits[start], rtol=0.1, atol=0.1
        )


def test_memory_format_does_not_matter(twins):
    _, model = twins
    batch = random_images(SIZES)
    expected = model.probe(batch)
    got = model.to(memory_format=torch.channels_last).probe(batch)
    torch.testing.assert_close(
        got.objectness_logits, expected.objectness_logits, rtol=1e-3, atol=1e-3
    )
    assert got.class_logits.shape == expected.class_logits.shape


@pytest.mark.cuda
def test_probes_on_the_gpu(twins):
    _, model = twins
    batch = random_images(SIZES)
    expected = model.probe(batch)
    got = model.cuda().probe(batch, with_detections=True)
    assert all(tensor.is_cuda for tensor in (got.proposal_boxes, *got.classifier_logits))
    assert not got.proposal_offsets.is_cuda
    torch.testing.assert_close(
        got.objectness_logits.cpu(), expected.objectness_logits, rtol=1e-2, atol=1e-2
    )


def test_groups_cover_the_roi_heads_and_overlap_nowhere(twins):
    _, model = twins
    groups = {group: module_group_parameters(model, [group]) for group in resettable_modules(model)}
    everything = [name for names in groups.values() for name in names]
    assert len(everything) == len(set(everything))
    assert set(everything) == {n for n in model.state_dict() if not n.startswith("backbone.")}
    assert set(classification_modules(model)) <= set(groups)
    assert all(groups.values())


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("faster_rcnn_tiny_c4", ("res5", "box_predictor")),
        ("faster_rcnn_tiny_fpn", ("box_head", "box_predictor")),
        ("mask_rcnn_tiny_fpn", ("box_head", "box_predictor", "mask_head")),
        ("double_head_rcnn_tiny_fpn", ("fc_head", "conv_head", "box_predictor")),
        ("cascade_rcnn_tiny_fpn", ("box_head", "box_predictor")),
    ],
)
def test_groups_of_each_detector(make_stock_cfg, name, groups):
    model = build_model(instrument_config(make_stock_cfg(name)))
    assert tuple(resettable_modules(model)) == ("rpn", *groups)


def test_a_cascade_shows_all_stages_and_the_last_one_counts(make_stock_cfg, build_random):
    model = build_random(instrument_config(make_stock_cfg("cascade_rcnn_tiny_fpn")))
    probe = model.probe(random_images(SIZES))
    assert len(probe.classifier_logits) == 3
    assert probe.class_logits is probe.classifier_logits[2]
    # Stages have weights of their own, and see other boxes.
    assert not torch.allclose(probe.classifier_logits[0], probe.classifier_logits[1])
    assert probe.proposal_boxes.shape == (len(probe.class_logits), 4)
