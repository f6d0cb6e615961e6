# SPDX-License-Identifier: Apache-2.0
"""RetinaNet and FCOS: stock detections, and a probe of the one opinion that they have."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import FCOS
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import generalized_box_iou

from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.modeling import (
    InstrumentedFCOS,
    classification_modules,
    instrument_config,
    module_group_parameters,
    number_of_classes,
    proposal_modules,
    resettable_modules,
    set_number_of_classes,
)
from d2defense.statistics import ObservationSettings, reduce_probe
from model_zoo_parity import random_images

SIZES = ((128, 128), (96, 64), (70, 120))
DETECTORS = ("retinanet", "fcos")


def tiny_cfg(kind: str) -> CfgNode:
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / "SynthSigns" / f"{kind}_tiny_fpn.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0
    return cfg


def stock_model(cfg: CfgNode) -> nn.Module:
    """What Detectron2 alone would build; it builds FCOS from no configuration."""
    if cfg.MODEL.META_ARCHITECTURE == "InstrumentedFCOS":
        return FCOS(**InstrumentedFCOS.from_config(cfg))
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    return build_model(cfg)


@pytest.fixture(params=DETECTORS)
def cfg(request):
    return tiny_cfg(request.param)


@pytest.fixture
def twins(cfg):
    torch.manual_seed(0)
    stock = stock_model(cfg).eval()
    with torch.no_grad():
        for name, tensor in stock.state_dict().items():
            # Fresh ones hardly tell anchors apart, and most scores lie at 0.01.
            if name.endswith("cls_score.weight"):
                tensor.normal_(0, 0.3)
            elif name.endswith("cls_score.bias"):
                tensor.zero_()
            elif name.endswith("bbox_pred.bias") and isinstance(stock, FCOS):
                # Boxes with an area.
                tensor.fill_(1.0)
    model = build_model(instrument_config(cfg)).eval()
    model.load_state_dict(stock.state_dict(), strict=True)
    return stock, model


def assert_same(ours: list[Instances], theirs: list[Instances]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(mine.scores, other.scores)
        assert torch.equal(mine.pred_classes, other.pred_classes)


def stock_detections(stock: nn.Module, batch: list[dict]) -> list[Instances]:
    with torch.no_grad():
        return [output["instances"] for output in stock(batch)]


def every_detection(stock: nn.Module, image: dict) -> Instances:
    """Of all anchors and classes, before NMS and not cut to the image."""
    kept = stock.test_topk_candidates, stock.test_nms_thresh, stock.max_detections_per_image
    stock.test_topk_candidates, stock.test_nms_thresh = 1 << 20, 1.0
    stock.max_detections_per_image = 1 << 20
    with torch.no_grad():
        images = stock.preprocess_image([image])
        features = stock.backbone(images.tensor)
        maps = [features[name] for name in stock.head_in_features]
        (found,) = stock.forward_inference(images, maps, stock.head(maps))
    stock.test_topk_candidates, stock.test_nms_thresh, stock.max_detections_per_image = kept
    return found


def class_scores(stock: nn.Module, image: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (A, K) of all anchors by the stock head, and the anchors."""
    with torch.no_grad():
        images = stock.preprocess_image([image])
        features = stock.backbone(images.tensor)
        maps = [features[name] for name in stock.head_in_features]
        logits, _, *centerness = stock.head(maps)
    anchors = Boxes.cat(stock.anchor_generator(maps)).tensor

    def flat(levels: list[torch.Tensor], depth: int) -> torch.Tensor:
        rows = [
            level[0].reshape(-1, depth, *level.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, depth)
            for level in levels
        ]
        return torch.cat(rows).sigmoid()

    scores = flat(logits, stock.num_classes)
    if centerness:
        scores = (scores * flat(centerness[0], 1)).sqrt()
    return scores, anchors


def test_detects_as_the_stock_detector_does(twins):
    stock, model = twins
    assert list(stock.state_dict()) == list(model.state_dict())
    batch = random_images(SIZES)
    expected = stock_detections(stock, batch)
    assert sum(map(len, expected)) > 20
    assert_same([output["instances"] for output in model(batch)], expected)
    detections, beside = model.detect_and_probe(batch)
    assert_same([output["instances"] for output in detections], expected)
    alone = model.probe(batch)
    assert torch.equal(beside.proposal_boxes, alone.proposal_boxes)
    assert torch.equal(beside.class_logits, alone.class_logits)
    # In pixels of the network's input, unlike those of stock inference.
    probed = model.probe([{"image": each["image"]} for each in batch], with_detections=True)
    plain = stock_detections(stock, [{"image": each["image"]} for each in batch])
    assert_same(probed.detections, plain)


def test_features_are_those_of_the_box_and_of_the_anchor_that_it_comes_from(twins):
    stock, model = twins
    batch = random_images(SIZES)
    heard = model.listen(batch)
    with torch.no_grad():
        images = stock.preprocess_image(batch)
        features = stock.backbone(images.tensor)
        found = model.proposals_on(features, images)
        maps = [features[name] for name in stock.head_in_features]
        towers = [stock.head.cls_subnet(each) for each in maps]
    # One row an anchor, as Detectron2 lines them up: level, row, column.
    repeats = [
        len(a) // (m.shape[2] * m.shape[3])
        for a, m in zip(stock.anchor_generator(maps), maps, strict=True)
    ]
    of_anchors = torch.cat(
        [
            t.permute(0, 2, 3, 1).flatten(1, 2).repeat_interleave(n, dim=1)
            for t, n in zip(towers, repeats, strict=True)
        ],
        dim=1,
    )
    expected = [rows[each.anchor_index] for rows, each in zip(of_anchors, found, strict=True)]
    assert torch.equal(heard.features.classified, torch.cat(expected))
    assert torch.equal(
        heard.probe.proposal_boxes, torch.cat([each.proposal_boxes.tensor for each in found])
    )
    # The features of a box, here by Detectron2's own layer, on the level of its anchor.
    ends = torch.tensor([len(each) for each in stock.anchor_generator(maps)]).cumsum(0)
    row = 0
    for image, each in enumerate(found):
        for box, anchor in zip(
            each.proposal_boxes.tensor[:20], each.anchor_index[:20], strict=True
        ):
            level = int((anchor >= ends).sum())
            scale = maps[level].shape[2] / images.tensor.shape[2]
            pool = ROIAlign((3, 3), scale, sampling_ratio=0, aligned=True)
            rois = torch.cat([torch.tensor([float(image)]), box])[None]
            value = pool(maps[level], rois).mean(dim=(0, 2, 3))
            index = row + int((each.anchor_index == anchor).nonzero()[0])
            torch.testing.assert_close(heard.features.pooled[index], value)
        row += len(each)


def test_detections_from_a_score_on_are_the_stock_ones_of_that_score(twins):
    stock, model = twins
    batch = [{"image": each["image"]} for each in random_images(SIZES)]
    expected = stock_detections(stock, batch)
    score = torch.cat([found.scores for found in expected]).median().item()
    got = model.probe(batch, with_detections=True, score_threshold=score).detections
    assert_same(got, [found[found.scores >= score] for found in expected])
    assert_same(model.probe(batch, with_detections=True).detections, expected)


def test_a_configuration_hides_no_detections_from_who_asks_from_a_score_on(twins):
    _, model = twins
    batch = [{"image": each["image"]} for each in random_images(SIZES)]
    expected = model.probe(batch, with_detections=True, score_threshold=0.2).detections
    model.max_detections_per_image, model.test_score_thresh = 1, 0.9
    assert_same(model.probe(batch, with_detections=True, score_threshold=0.2).detections, expected)
    assert (
        max(map(len, model.probe(batch, with_detections=True).detections)) <= 1 < len(expected[0])
    )


def test_q_of_a_proposal_is_the_largest_class_score_of_its_anchor(twins):
    stock, model = twins
    for image in random_images(SIZES):
        scores, _ = class_scores(stock, image)
        probe = model.probe([image])
        probabilities = probe.class_logits.double().softmax(dim=1)
        q = 1 - probabilities[:, -1]
        assert probe.objectness_logits is None
        assert len(q) > 20
        assert (q.diff() <= 1e-6).all()
        # The surest anchor is a proposal, and every q is some anchor's score.
        torch.testing.assert_close(q[0], scores.max().double(), rtol=1e-4, atol=1e-5)
        nearest = (scores.amax(dim=1).double()[None] - q[:, None]).abs().amin(dim=1)
        assert nearest.max() < 1e-4
        # Classes share it out as their scores say.
        best = scores[scores.amax(dim=1).argmax()].double()
        torch.testing.assert_close(
            probabilities[0, :-1], best / best.sum() * best.max(), rtol=1e-3, atol=1e-5
        )


def test_regions_are_judged_by_the_anchors_next_to_them(cfg, twins):
    stock, model = twins
    image = {"image": random_images(((128, 128),))[0]["image"]}
    # Such that no two anchors are as near.
    regions = torch.tensor([[41.3, 38.2, 71.1, 73.5], [9.7, 51.2, 47.8, 89.9]])
    scores, anchors = class_scores(stock, image)
    with torch.no_grad():
        judged = model.judge([image], [regions])
    assert judged.objectness_logits is None
    if cfg.MODEL.META_ARCHITECTURE == "InstrumentedRetinaNet":
        overlap = pairwise_iou(Boxes(regions), Boxes(anchors))
        largest, rows = overlap.sort(dim=1, descending=True)
        assert (largest[:, 5] > largest[:, 6]).all()
        rows = rows[:, :6]
    else:
        # Of the finest level, which is for boxes of this size.
        fine = anchors[:, 2] - anchors[:, 0] == 8
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        wanted = (regions[:, :2] + regions[:, 2:]) / 2
        away = (middles[None] - wanted[:, None]).abs().amax(dim=2)
        rows = torch.where(fine, away, torch.inf).topk(6, dim=1, largest=False).indices
        assert away.gather(1, rows).max() < 20
    expected = torch.stack([scores[row].amax() for row in rows])
    q = 1 - judged.class_logits.softmax(dim=1)[:, -1]
    torch.testing.assert_close(q, expected, rtol=1e-3, atol=1e-4)
    # The box of each class is the one that stock inference has with that score.
    found = every_detection(stock, image)
    for region, row, overlaps in zip(regions, rows, judged.overlap, strict=True):
        for category, overlap in enumerate(overlaps):
            of_class = found[found.pred_classes == category]
            which = (of_class.scores - scores[row, category].max()).abs().argmin()
            box = of_class.pred_boxes.tensor[which]
            torch.testing.assert_close(
                overlap, generalized_box_iou(box[None], region[None])[0, 0], rtol=1e-3, atol=1e-3
            )


def test_gradients_reach_the_image_and_regions_stay_in_order(twins):
    _, model = twins
    batch = random_images(((96, 96), (96, 96)))
    regions = [torch.tensor([[8.0, 8, 50, 50], [1, 2, 80, 90]]), torch.tensor([[20.0, 9, 60, 50]])]
    pixels = batch[0]["image"].float().requires_grad_()
    together = model.judge([{"image": pixels}, batch[1]], regions)
    together.class_logits[0, 0].backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().max() > 0
    for image, boxes, (start, end) in zip(batch, regions, pairwise((0, 2, 3)), strict=True):
        alone = model.judge([image], [boxes])
        torch.testing.assert_close(
            together.class_logits[start:end], alone.class_logits, rtol=1e-3, atol=1e-3
        )
    for call in (model.probe, model.detect_and_probe, lambda images: model.judge(images, regions)):
        with pytest.raises(RuntimeError, match="eval mode"):
            model.train()
            call(batch)


def test_training_losses_are_the_same(twins):
    batch = []
    for image in random_images(((96, 128), (96, 128))):
        target = Instances((96, 128))
        target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 50, 60], [20, 30, 60, 70]]))
        target.gt_classes = torch.tensor([1, 4])
        batch.append({"image": image["image"], "instances": target})
    with EventStorage():
        stock, model = (each.train() for each in twins)
        expected = stock(batch)
        losses, features = model.losses_and_features(batch)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], expected[name]) for name in losses)
    assert all(each.requires_grad for each in features.values())


def test_statistics_without_objectness_have_no_data(twins):
    _, model = twins
    batch = random_images(((128, 128),))
    probe = model.probe(batch)
    boxes, classes = [probe.proposal_boxes[:1]], [torch.tensor([0])]
    seen = reduce_probe(probe, boxes, classes, torch.tensor([True]), ObservationSettings())
    known = {name for name, terms in seen.terms.items() if terms.denominator.any()}
    assert known == {"objects_found", "max_foreground", "true_class", "unmatched_foreground"}
    assert not seen.histogram.any()
    q = 1 - probe.class_logits.double().softmax(dim=1)[0, -1]
    torch.testing.assert_close(seen.terms["max_foreground"].numerator[0], q, rtol=1e-5, atol=1e-6)


def test_module_groups_and_classes(cfg, twins):
    _, model = twins
    assert proposal_modules(model) == ()
    assert set(classification_modules(model)) <= set(resettable_modules(model))
    named = module_group_parameters(model, list(resettable_modules(model)))
    assert set(named) == {name for name in model.state_dict() if name.startswith("head.")}
    assert number_of_classes(cfg) == model.num_classes == 7
    set_number_of_classes(cfg, 3)
    assert build_model(cfg).num_classes == 3
