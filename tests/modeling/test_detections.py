# SPDX-License-Identifier: Apache-2.0
"""An instrumented detector is the stock one to everybody who does not probe it."""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2defense.modeling import instrument_config


def inputs(*sizes: tuple[int, int]) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8),
            "height": 2 * h,
            "width": 3 * w,
        }
        for h, w in sizes
    ]


def same_everywhere(stock, instrumented, batch) -> int:
    """Compare both models' outputs bit by bit; the number of detections."""
    with torch.no_grad():
        expected, got = stock(batch), instrumented(batch)
    for theirs, ours in zip(expected, got, strict=True):
        theirs, ours = theirs["instances"].get_fields(), ours["instances"].get_fields()
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            value, mine = getattr(value, "tensor", value), ours[name]
            assert torch.equal(value, getattr(mine, "tensor", mine)), name
    return sum(len(output["instances"]) for output in expected)


def twins(cfg, build_random):
    stock = build_random(cfg)
    assert type(stock) is GeneralizedRCNN
    instrumented = build_model(instrument_config(cfg)).eval()
    assert list(instrumented.state_dict()) == list(stock.state_dict())
    instrumented.load_state_dict(stock.state_dict(), strict=True)
    return stock, instrumented


def test_tiny_detector_detects_the_same(tiny_stock_cfg, build_random):
    stock, instrumented = twins(tiny_stock_cfg, build_random)
    assert same_everywhere(stock, instrumented, inputs((128, 128), (96, 130))) > 20


def test_training_losses_are_the_same(tiny_stock_cfg, build_random):
    stock, instrumented = twins(tiny_stock_cfg, build_random)
    target = Instances((128, 128))
    target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [50, 40, 120, 100]]))
    target.gt_classes = torch.tensor([1, 4])
    batch = [{**inputs((128, 128))[0], "instances": target}]
    losses = []
    for model in (stock, instrumented):
        model.train()
        torch.manual_seed(3)
        with EventStorage():
            losses.append(model(batch))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
