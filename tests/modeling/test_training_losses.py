# SPDX-License-Identifier: Apache-2.0
"""Losses together with the features that they rest on are those of stock training."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2defense.modeling import instrument_config


def training_input(count: int = 2) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    inputs = []
    for _ in range(count):
        instances = Instances((96, 128))
        instances.gt_boxes = Boxes(torch.tensor([[10.0, 8, 60, 70], [50, 30, 120, 90]]))
        instances.gt_classes = torch.tensor([1, 4])
        masks = torch.zeros(2, 96, 128, dtype=torch.bool)
        masks[0, 8:70, 10:60] = masks[1, 30:90, 50:120] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances})
    return inputs


def test_losses_and_features_are_those_of_a_stock_training_pass(any_stock_cfg, build_random):
    any_stock_cfg.INPUT.MASK_FORMAT = "bitmask"
    inputs = training_input()
    stock = build_random(any_stock_cfg).train()
    model = build_random(instrument_config(any_stock_cfg)).train()
    with EventStorage(0):
        torch.manual_seed(5)
        expected = stock(inputs)
        torch.manual_seed(5)
        losses, features = model.losses_and_features(inputs)
    assert list(losses) == list(expected)
    for name, loss in expected.items():
        assert torch.equal(losses[name], loss), name
    # Batch statistics have moved, and so would features of a second pass.
    reference = build_random(any_stock_cfg).train()
    reference = reference.backbone(reference.preprocess_image(inputs).tensor)
    assert features.keys() == reference.keys()
    assert all(torch.equal(features[name], reference[name]) for name in reference)
    assert all(features[name].requires_grad for name in features)


def test_in_eval_mode_there_are_no_losses(tiny_stock_cfg, build_random):
    model = build_random(instrument_config(tiny_stock_cfg)).eval()
    with pytest.raises(RuntimeError, match="training mode"):
        model.losses_and_features(training_input())
