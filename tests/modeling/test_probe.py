# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

from d2defense.modeling import instrument_config
from d2defense.modeling.postprocess import batch_detections

SIZES = [(128, 128), (96, 64), (70, 120)]


@pytest.fixture
def stock(tiny_stock_cfg, build_random):
    return build_random(tiny_stock_cfg)


@pytest.fixture
def instrumented(stock, tiny_stock_cfg):
    model = build_model(instrument_config(tiny_stock_cfg)).eval()
    model.load_state_dict(stock.state_dict())
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return [
        {"image": torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)}
        for h, w in SIZES
    ]


def per_image(output, tensor):
    offsets = output.proposal_offsets.tolist()
    return [tensor[start:end] for start, end in pairwise(offsets)]


def test_probe_says_what_stock_modules_say_of_each_image(stock, instrumented, batch):
    output = instrumented.probe(batch)
    with torch.no_grad():
        images = stock.preprocess_image(batch)
        features = stock.backbone(images.tensor)
        proposals, _ = stock.proposal_generator(images, features, None)
        for index, (expected, boxes, objectness, logits) in enumerate(
            zip(
                proposals,
                per_image(output, output.proposal_boxes),
                per_image(output, output.objectness_logits),
                per_image(output, output.class_logits),
                strict=True,
            )
        ):
            assert len(boxes) > 10
            assert torch.equal(boxes, expected.proposal_boxes.tensor)
            assert torch.equal(objectness, expected.objectness_logits)
            heads = stock.roi_heads
            one = [features[name][index : index + 1] for name in heads.box_in_features]
            pooled = heads.box_pooler(one, [expected.proposal_boxes])
            scores, _ = heads.box_predictor(heads.box_head(pooled))
            torch.testing.assert_close(logits, scores, rtol=1e-4, atol=1e-5)


def test_images_of_different_sizes_keep_their_own_frame(instrumented, batch):
    output = instrumented.probe(batch)
    assert output.image_sizes == SIZES
    assert output.proposal_offsets.dtype == torch.int64
    assert output.proposal_offsets.tolist()[0] == 0
    assert output.proposal_offsets.tolist()[-1] == len(output.proposal_boxes)
    assert output.class_logits.shape == (len(output.proposal_boxes), 8)
    assert output.objectness_logits.shape == (len(output.proposal_boxes),)
    for (height, width), boxes, objectness in zip(
        SIZES,
        per_image(output, output.proposal_boxes),
        per_image(output, output.objectness_logits),
        strict=True,
    ):
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height
        assert torch.equal(objectness, objectness.sort(descending=True).values)


def test_probe_returns_stock_detections_only_if_asked(stock, instrumented, batch):
    assert instrumented.probe(batch).detections is None
    output = instrumented.probe(batch, with_detections=True)
    with torch.no_grad():
        expected = stock.inference(batch, do_postprocess=False)
    assert sum(map(len, expected)) > 20
    for theirs, ours in zip(expected, output.detections, strict=True):
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)


def test_detections_of_a_batch_are_those_of_each_image():
    generator = torch.Generator().manual_seed(0)
    sizes = [(60, 80), (50, 40), (70, 90)]
    for columns, limit in ((4, 7), (4 * 6, -1), (4 * 6, 0)):
        corners = [torch.rand(40, columns // 4, 2, 2, generator=generator) * 100 - 5 for _ in sizes]
        boxes = [torch.cat([c.amin(2), c.amax(2)], dim=2).reshape(40, columns) for c in corners]
        scores = [torch.rand(40, 7, generator=generator).softmax(dim=1) for _ in sizes]
        scores[1][3] = float("nan")
        boxes[2][5, 0] = float("inf")
        arguments = (sizes, 0.14, 0.5, limit)
        expected, _ = fast_rcnn_inference([b.clone() for b in boxes], scores, *arguments)
        got = batch_detections(boxes, scores, *arguments)
        assert sum(map(len, expected)) > 20 or limit == 0
        for theirs, ours in zip(expected, got, strict=True):
            assert ours.image_size == theirs.image_size
            assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
            assert torch.equal(ours.scores, theirs.scores)
            assert torch.equal(ours.pred_classes, theirs.pred_classes)


def test_probe_needs_no_gradient_and_leaves_no_trace(instrumented, batch):
    before = {name: tensor.clone() for name, tensor in instrumented.state_dict().items()}
    output = instrumented.probe(batch)
    assert not output.class_logits.requires_grad
    assert not instrumented.training
    after = instrumented.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_image_without_proposals_is_an_empty_group(instrumented, batch):
    # An RPN that answers with NaN: Detectron2 drops such proposals at inference.
    with torch.no_grad():
        instrumented.proposal_generator.rpn_head.objectness_logits.bias.fill_(float("nan"))
    output = instrumented.probe(batch, with_detections=True)
    assert output.proposal_offsets.tolist() == [0, 0, 0, 0]
    assert output.class_logits.shape == (0, 8)
    assert [len(found) for found in output.detections] == [0, 0, 0]


def test_training_mode_is_refused(instrumented, batch):
    with pytest.raises(RuntimeError, match="eval"):
        instrumented.train().probe(batch)
