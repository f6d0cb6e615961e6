# SPDX-License-Identifier: Apache-2.0
"""How fast the heads learn beside the backbone."""

from __future__ import annotations

import pytest
import torch

from d2defense.checkpoint import load_state_dict
from d2defense.removal.rates import heads

KINDS = ["faster_rcnn_tiny_fpn", "faster_rcnn_tiny_c4", "mask_rcnn_tiny_fpn", "fcos_tiny_fpn"]
KINDS += ["double_head_rcnn_tiny_fpn", "retinanet_tiny_fpn"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_heads_of_every_kind_are_all_but_the_backbone(build_tiny, kind):
    model, _ = build_tiny(kind)
    backbone = {id(each) for each in model.backbone.parameters()}
    every = {id(each) for each in model.parameters()}
    assert {id(each) for each in heads(model)} == every - backbone


def rates(trainer) -> tuple[set[float], set[float]]:
    """Learning rates of backbone and heads, as multiples of ``SOLVER.BASE_LR``."""
    of_parts: tuple[set[float], set[float]] = (set(), set())
    of_heads = {id(each) for each in heads(trainer.model)}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            rate = group.get("initial_lr", group["lr"]) / trainer.cfg.SOLVER.BASE_LR
            of_parts[id(parameter) in of_heads].add(round(rate, 6))
    return of_parts


@pytest.mark.parametrize("method", ["vanilla", "unlearn"])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_heads_learn_at_a_rate_of_their_own(make_trainer, method, factor):
    trainer = make_trainer(method, "REMOVAL.HEADS_LR_FACTOR", factor)
    assert rates(trainer) == ({1.0}, {factor})


@pytest.mark.parametrize("method", ["vanilla", "unlearn"])
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_heads_stay_as_they_are_where_they_are_to(
    make_trainer, untrained_checkpoint, method, factor
):
    origin = load_state_dict(untrained_checkpoint / "model_final.pth")
    trainer = make_trainer(method, "REMOVAL.HEADS_LR_FACTOR", factor)
    trainer.resume_or_load(resume=False)
    trainer.train()
    learnt = trainer.model.state_dict()
    changed = {name.split(".")[0] for name in origin if not torch.equal(learnt[name], origin[name])}
    every = {name.split(".")[0] for name in origin}
    assert changed == (every if factor else {"backbone"})


@pytest.mark.parametrize(("images", "factor"), [(8, 0.5), (2, 1.0), (400, 0.01)])
def test_the_heads_learn_a_known_trigger_the_slower_the_fewer_images_there_are(
    make_trainer, images, factor
):
    """The trainer has 4 images."""
    entry = '{"family": "patch", "name": "white", "color": [255, 255, 255]}'
    trainer = make_trainer(
        "known_trigger",
        "REMOVAL.KNOWN_TRIGGER.TRIGGERS", (entry,),
        "REMOVAL.KNOWN_TRIGGER.HEADS_IMAGES", images,
    )  # fmt: skip
    assert rates(trainer) == ({1.0}, {factor})
