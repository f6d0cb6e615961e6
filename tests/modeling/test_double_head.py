# SPDX-License-Identifier: Apache-2.0
"""Double-Head R-CNN against the paper (arXiv 1904.06493) and against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from d2defense.modeling import instrument_config
from d2defense.modeling.double_head import DoubleHeadOutputLayers
from d2defense.modeling.double_head.blocks import NonLocalBlock, WideningBlock
from d2defense.modeling.double_head.box_head import ConvHead
from d2defense.modeling.double_head.predictor import DoubleHeadPredictions
from model_zoo_parity import random_images


# Table 4 of the paper: convolution weights in units of 2^20, by K, with and without non-local
# blocks.
@pytest.mark.parametrize(
    ("num_blocks", "non_local", "size"),
    [
        (1, False, 1.06), (2, False, 2.13), (3, False, 3.19), (4, False, 4.25), (5, False, 5.31),
        (6, False, 6.38), (7, False, 7.44), (3, True, 4.13), (5, True, 7.19), (7, True, 10.25),
    ],
)  # fmt: skip
def test_convolution_head_has_the_size_of_the_paper(num_blocks, non_local, size):
    head = ConvHead(256, channels=1024, num_blocks=num_blocks, non_local=non_local)
    weights = sum(p.numel() for p in head.parameters() if p.dim() == 4)
    # The paper rounds halves up.
    assert int(weights / 2**20 * 100 + 0.5) / 100 == size
    # A non-local block counts as one; the average at the end is not a block.
    assert len(head) - 2 == num_blocks
    assert head.output_shape.channels == 1024


@pytest.mark.parametrize(("num_blocks", "non_local"), [(0, False), (2, True), (4, True)])
def test_heads_that_cannot_be_built_are_refused(num_blocks, non_local):
    with pytest.raises(ValueError, match=f"{num_blocks} blocks"):
        ConvHead(8, channels=16, num_blocks=num_blocks, non_local=non_local)


@pytest.mark.parametrize("size", [5, 7])
def test_convolution_head_averages_over_positions(size):
    head = ConvHead(8, channels=16, num_blocks=3).eval()
    assert head(torch.randn(4, 8, size, size)).shape == (4, 16)
    assert head(torch.randn(0, 8, size, size)).shape == (0, 16)


def test_a_fresh_non_local_block_is_the_identity():
    x = torch.rand(2, 8, 5, 5)
    assert torch.equal(NonLocalBlock(8).eval()(x), x)


def test_non_local_block_attends_as_the_formula_says():
    torch.manual_seed(0)
    block = NonLocalBlock(6, norm="").double()
    with torch.no_grad():
        block.output.weight.normal_()
        block.output.bias.normal_()
        for layer in (block.theta, block.phi, block.g):
            layer.weight.normal_()
    x = torch.rand(2, 6, 3, 4, dtype=torch.float64)
    got = block(x).detach().numpy()

    def project(layer, columns):
        weight, bias = (t.detach().numpy() for t in (layer.weight, layer.bias))
        return weight[:, :, 0, 0] @ columns + bias[:, None]

    for image, result in zip(x.numpy(), got, strict=True):
        columns = image.reshape(6, 12)
        similarity = project(block.theta, columns).T @ project(block.phi, columns)
        weights = np.exp(similarity) / np.exp(similarity).sum(axis=1, keepdims=True)
        attended = project(block.g, columns) @ weights.T
        expected = np.maximum(columns + project(block.output, attended), 0)
        np.testing.assert_allclose(result.reshape(6, 12), expected, rtol=1e-10)


def test_widening_block_keeps_the_shortcut():
    block = WideningBlock(4, 16).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(block(x), F.relu(block.shortcut(x)))


def output_layers(**options) -> DoubleHeadOutputLayers:
    torch.manual_seed(1)
    return DoubleHeadOutputLayers(
        ShapeSpec(channels=12),
        ShapeSpec(channels=20),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=3,
        **options,
    )


EXTENDED = {"unfocused_supervision": True, "fused_score": True}


def labelled_proposals() -> list[Instances]:
    proposals = Instances((64, 64))
    proposals.proposal_boxes = Boxes(
        torch.tensor([[0.0, 0, 20, 20], [8, 8, 40, 40], [30, 30, 60, 60]])
    )
    proposals.gt_boxes = Boxes(torch.tensor([[1.0, 1, 22, 22], [8, 9, 41, 42], [0, 0, 1, 1]]))
    proposals.gt_classes = torch.tensor([2, 0, 3])
    return [proposals]


@pytest.mark.parametrize("extended", [False, True])
def test_losses_are_weighted_as_in_the_paper(extended):
    layers = output_layers(**(EXTENDED if extended else {}))
    features = torch.randn(3, 12), torch.randn(3, 20)
    proposals = labelled_proposals()
    with EventStorage():
        predictions = layers(features)
        losses = layers.losses(predictions, proposals)
        one = FastRCNNOutputLayers(
            ShapeSpec(channels=1), box2box_transform=layers.box2box_transform, num_classes=3
        )
        own = one.losses((predictions.fc_scores, predictions.conv_deltas), proposals)
        if not extended:
            assert predictions.conv_scores is None
            assert predictions.fc_deltas is None
            expected = {
                "loss_cls": 2.0 * own["loss_cls"],
                "loss_box_reg": 2.5 * own["loss_box_reg"],
            }
        else:
            other = one.losses((predictions.conv_scores, predictions.fc_deltas), proposals)
            # The authors' own training command weighs them 0.5, 2.0, 1.4 and 0.6.
            expected = {
                "loss_cls_conv": 0.5 * other["loss_cls"],
                "loss_box_reg": 2.0 * own["loss_box_reg"],
                "loss_cls": 1.4 * own["loss_cls"],
                "loss_box_reg_fc": 0.6 * other["loss_box_reg"],
            }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_each_head_learns_its_own_task_alone():
    layers = output_layers()
    fc, conv = torch.randn(3, 12, requires_grad=True), torch.randn(3, 20, requires_grad=True)
    with EventStorage():
        losses = layers.losses(layers((fc, conv)), labelled_proposals())
    assert torch.autograd.grad(losses["loss_cls"], conv, allow_unused=True, retain_graph=True) == (
        None,
    )
    assert torch.autograd.grad(losses["loss_box_reg"], fc, allow_unused=True) == (None,)


def test_fused_score_is_that_of_two_independent_opinions():
    layers = output_layers(**EXTENDED)
    predictions = layers((torch.randn(3, 12) * 50, torch.randn(3, 20) * 50))
    (probabilities,) = layers.predict_probs(predictions, labelled_proposals())
    fc, conv = (
        F.softmax(scores.double(), dim=1)
        for scores in (predictions.fc_scores, predictions.conv_scores)
    )
    expected = 1 - (1 - fc) * (1 - conv)
    torch.testing.assert_close(probabilities.double(), expected, rtol=1e-5, atol=1e-6)
    plain = output_layers()
    (own,) = plain.predict_probs(
        DoubleHeadPredictions(predictions.fc_scores, predictions.conv_deltas, None, None),
        labelled_proposals(),
    )
    torch.testing.assert_close(own.double(), fc, rtol=1e-5, atol=1e-6)


def test_fused_score_needs_the_second_classifier():
    with pytest.raises(ValueError, match="unfocused supervision"):
        output_layers(fused_score=True)


def test_initialisation_is_that_of_the_stock_output_layers():
    layers = output_layers(**EXTENDED)
    for name, layer in layers.named_children():
        std = 0.01 if "cls" in name else 0.001
        assert layer.weight.std().item() == pytest.approx(std, rel=0.4)
        assert not layer.bias.any()


def test_extended_detector_shows_both_classifiers(make_stock_cfg, build_random):
    cfg = make_stock_cfg(
        "double_head_rcnn_tiny_fpn",
        "MODEL.ROI_DOUBLE_HEAD.UNFOCUSED_SUPERVISION", True,
        "MODEL.ROI_DOUBLE_HEAD.FUSED_SCORE", True,
    )  # fmt: skip
    model = build_random(instrument_config(cfg))
    probe = model.probe(random_images(((96, 96),)))
    assert len(probe.classifier_logits) == 2
    assert not torch.equal(*probe.classifier_logits)


def test_masks_beside_a_double_head(make_stock_cfg):
    cfg = make_stock_cfg(
        "double_head_rcnn_tiny_fpn", "MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8
    )
    model = build_model(cfg).eval()
    with torch.no_grad():
        (output,) = model(random_images(((96, 96),)))
    assert output["instances"].pred_masks.shape[1:] == (192, 192)


def test_another_box_head_is_refused(make_stock_cfg):
    cfg = make_stock_cfg(
        "double_head_rcnn_tiny_fpn", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"
    )
    with pytest.raises(ValueError, match="needs DoubleHead"):
        build_model(cfg)
