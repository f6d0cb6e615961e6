# SPDX-License-Identifier: Apache-2.0
"""Given regions are judged as proposals are, and gradients reach the image."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

from d2defense.modeling import instrument_config
from model_zoo_parity import random_images

SIZES = ((128, 128), (96, 64))


@pytest.fixture
def model(any_stock_cfg, build_random):
    model = build_model(instrument_config(any_stock_cfg)).eval()
    model.load_state_dict(build_random(any_stock_cfg).state_dict())
    return model


def test_proposals_as_regions_rank_classes_as_stock_scores_do(model):
    """The scores of stock inference, cascades' means among them, are the independent reference."""
    batch = random_images(SIZES)
    with torch.no_grad():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        heads, scores = model.roi_heads, []
        stages = heads.box_predictor if hasattr(heads.box_predictor, "__len__") else None
        if stages is None:
            predictions = heads._predict(features, proposals)
            scores = torch.cat(heads.box_predictor.predict_probs(predictions, proposals))
        else:
            each = heads._run_stages(features, proposals)
            scores = torch.stack([logits.softmax(1) for logits in each]).mean(0)
        judged = model.judge(batch, [each.proposal_boxes.tensor for each in proposals])
    torch.testing.assert_close(judged.class_logits.softmax(1), scores, rtol=1e-3, atol=1e-4)
    # A probe reads them the same way: a cascade with one stage that is blind is not its last stage.
    probed = model.probe(batch)
    torch.testing.assert_close(probed.deployed_logits.softmax(1), scores, rtol=1e-3, atol=1e-4)


def test_a_region_has_the_objectness_of_its_anchors(model):
    batch = random_images(SIZES)
    regions = [torch.tensor([[10.3, 12.1, 60, 71.7]]), torch.tensor([[5.2, 4.9, 41, 46.3]])]
    with torch.no_grad():
        judged = model.judge(batch, regions)
        features = model.backbone(model.preprocess_image(batch).tensor)
        generator = model.proposal_generator
        maps = [features[name] for name in generator.in_features]
        anchors = generator.anchor_generator(maps)
        logits, _ = generator.rpn_head(maps)
    expected = []
    for image, boxes in enumerate(regions):
        # One anchor after another, level by level, as the RPN numbers them.
        values = torch.cat(
            [
                torch.stack([level[image, a, y, x]
                             for y in range(level.shape[2])
                             for x in range(level.shape[3])
                             for a in range(level.shape[1])])
                for level in logits
            ]
        )  # fmt: skip
        overlap = pairwise_iou(Boxes(boxes), Boxes.cat(anchors))
        for row in overlap:
            best = row.argsort(descending=True, stable=True)[:6]
            expected.append(values[best].max())
    torch.testing.assert_close(judged.objectness_logits, torch.stack(expected))


def test_objectness_does_not_depend_on_how_many_regions_are_judged(model):
    """Few are looked at one by one, many on whole maps."""
    batch = random_images(SIZES)
    corners = torch.rand(2, 400, 4, generator=torch.Generator().manual_seed(0)) * 60
    regions = [torch.cat([each[:, :2], each[:, :2] + each[:, 2:] + 4], dim=1) for each in corners]
    # Anchors beyond the edge, too.
    few = [torch.cat([each[:2], torch.tensor([[-20.0, -20, 5, 5]])]) for each in regions]
    gradients, objectness = [], []
    for extra in ([each[:0] for each in regions], regions):
        inputs = [each | {"image": each["image"].float().requires_grad_()} for each in batch]
        both = [torch.cat([each, more]) for each, more in zip(few, extra, strict=True)]
        parts = model.judge(inputs, both).objectness_logits.split([len(each) for each in both])
        objectness.append(torch.cat([part[:3] for part in parts]))
        objectness[-1].sum().backward()
        gradients.append([each["image"].grad for each in inputs])
    torch.testing.assert_close(*objectness)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_gradients_reach_the_image(model):
    (image,) = random_images(((64, 64),))
    pixels = image["image"].float().requires_grad_()
    output = model.judge([{"image": pixels}], [torch.tensor([[8.0, 8, 50, 50]])])
    (output.class_logits[:, 0].sum() + output.objectness_logits.sum()).backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().max() > 0


def test_regions_of_images_stay_in_order(model):
    batch = random_images(((96, 96), (96, 96)))
    regions = [torch.tensor([[8.0, 8, 50, 50], [1, 2, 80, 90]]), torch.tensor([[20.0, 9, 60, 50]])]
    with torch.no_grad():
        together = model.judge(batch, regions)
        for image, boxes, (start, end) in zip(batch, regions, pairwise((0, 2, 3)), strict=True):
            alone = model.judge([image], [boxes])
            torch.testing.assert_close(
                together.class_logits[start:end], alone.class_logits, rtol=1e-3, atol=1e-3
            )


def test_training_mode_is_refused(model):
    with pytest.raises(RuntimeError, match="eval mode"):
        model.train().judge(random_images(((64, 64),)), [torch.zeros(0, 4)])


def test_what_is_proposed_by_now_is_judged_beside_its_region(model):
    """Proposals of the probe that overlap a region by half, at most three, the first ones."""
    batch = random_images(SIZES[:1])
    with torch.no_grad():
        proposals = model.probe(batch).proposal_boxes
        # Round a proposal, so that there is something to find.
        region = proposals[:1] + torch.tensor([-1.0, 1, 1, -1])
        alone = model.judge(batch, [region])
        refreshed = model.judge(batch, [region], refresh=True)
        overlaps = pairwise_iou(Boxes(region), Boxes(proposals))[0] >= 0.5
        expected = model.judge(batch, [torch.cat([region, proposals[overlaps][:3]])])
    assert 2 <= len(refreshed.class_logits) <= 4
    torch.testing.assert_close(refreshed.class_logits[:1], alone.class_logits)
    torch.testing.assert_close(refreshed.class_logits, expected.class_logits)
    torch.testing.assert_close(refreshed.objectness_logits, expected.objectness_logits)


def test_in_training_every_stage_of_a_cascade_judges_every_box(make_stock_cfg, build_random):
    """Stock training would drop boxes that the stage before has moved out of the image."""
    cfg = make_stock_cfg("cascade_rcnn_tiny_fpn")
    model = build_model(instrument_config(cfg))
    model.load_state_dict(build_random(cfg).state_dict())
    model.train()
    with torch.no_grad():
        model.roi_heads.box_predictor[0].bbox_pred.bias.copy_(torch.tensor([1000.0, 0, 0, 0]))
        images = model.preprocess_image(random_images(SIZES))
        features = model.backbone(images.tensor)
        proposals = model.proposals_on(features, images)
        boxes = [each.proposal_boxes.tensor[:7] for each in proposals]
        judged = model.classifiers_on(features, images.image_sizes, boxes)
        probe, _ = model.opinions(features, images, 7)
    assert [len(logits) for logits in judged] == [14, 14, 14]
    assert [len(logits) for logits in probe.classifier_logits] == [14, 14, 14]
