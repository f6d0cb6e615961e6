# SPDX-License-Identifier: Apache-2.0
"""Box heads whose classes do not exclude each other (MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE)."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from d2defense.modeling import instrument_config
from d2defense.modeling.sigmoid_scores import softmax_logits
from model_zoo_parity import random_images

SIZES = ((128, 128), (96, 64))


@pytest.mark.parametrize(
    "name", ["faster_rcnn_tiny_c4", "faster_rcnn_tiny_fpn", "cascade_rcnn_tiny_fpn"]
)
def test_q_is_the_largest_class_score_and_detections_stay(name, make_stock_cfg, build_random):
    cfg = make_stock_cfg(name, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    stock = build_random(cfg)
    model = build_model(instrument_config(cfg)).eval()
    model.load_state_dict(stock.state_dict(), strict=True)
    batch = random_images(SIZES)
    raw = []
    heads = [module for key, module in stock.named_modules() if key.endswith("cls_score")]
    hooks = [head.register_forward_hook(lambda m, i, output: raw.append(output)) for head in heads]
    with torch.no_grad():
        expected = stock(batch)
    for hook in hooks:
        hook.remove()
    detections, beside = model.detect_and_probe(batch)
    assert sum(len(output["instances"]) for output in expected) > 20
    for ours, theirs in zip(detections, expected, strict=True):
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)
        assert torch.equal(
            ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor
        )
    for probe in (beside, model.probe(batch), model.probe(batch, with_detections=True)):
        assert len(probe.classifier_logits) == len(raw)
        for logits, scores in zip(probe.classifier_logits, raw, strict=True):
            q = 1 - logits.double().softmax(dim=1)[:, -1]
            best, which = scores.double().sigmoid()[:, :-1].max(dim=1)
            torch.testing.assert_close(q, best, rtol=1e-4, atol=1e-6)
            assert torch.equal(logits[:, :-1].argmax(dim=1), which)
    (image,) = random_images(((64, 64),))
    pixels = image["image"].float().requires_grad_()
    judged = model.judge([{"image": pixels}], [torch.tensor([[8.0, 8, 50, 50]])])
    judged.class_logits[:, 0].sum().backward()
    assert pixels.grad.abs().max() > 0


def test_scores_from_one_end_to_the_other():
    scores = torch.tensor(
        [[1.0, 0.5], [0.999999, 1e-9], [0.5, 0.5], [1e-30, 1e-38]], dtype=torch.float64
    )
    logits = softmax_logits(scores.log().float()).double()
    assert logits.isfinite().all()
    probabilities = logits.softmax(dim=1)
    torch.testing.assert_close(
        probabilities[:, :-1].sum(dim=1), scores.amax(dim=1), rtol=1e-4, atol=2e-6
    )
    torch.testing.assert_close(
        probabilities[:, 0] / probabilities[:, 1], scores[:, 0] / scores[:, 1], rtol=1e-3, atol=0
    )


def test_the_gradient_is_a_number_at_both_ends():
    logits = torch.tensor([[40.0, -3], [-90, -95], [0, 0]], requires_grad=True)
    softmax_logits(torch.nn.functional.logsigmoid(logits)).sum().backward()
    assert logits.grad.isfinite().all()
