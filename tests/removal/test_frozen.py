# SPDX-License-Identifier: Apache-2.0
"""What learns where the heads stay as they are."""

from __future__ import annotations

import pytest
import torch

from d2defense.checkpoint import load_state_dict
from d2defense.removal.frozen import freeze_heads

KINDS = ["faster_rcnn_tiny_fpn", "faster_rcnn_tiny_c4", "mask_rcnn_tiny_fpn", "fcos_tiny_fpn"]
KINDS += ["double_head_rcnn_tiny_fpn", "retinanet_tiny_fpn"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_of_every_kind_learns_and_nothing_else(build_tiny, kind):
    model, _ = build_tiny(kind)
    freeze_heads(model)
    learns = {id(each) for each in model.parameters() if each.requires_grad}
    assert learns == {id(each) for each in model.backbone.parameters()}


@pytest.mark.parametrize("method", ["vanilla", "unlearn"])
@pytest.mark.parametrize("freezes", [True, False])
def test_heads_stay_as_they_are_where_they_are_to(
    make_trainer, untrained_checkpoint, method, freezes
):
    origin = load_state_dict(untrained_checkpoint / "model_final.pth")
    trainer = make_trainer(method, "REMOVAL.FREEZE_HEADS", freezes)
    trainer.resume_or_load(resume=False)
    trainer.train()
    learnt = trainer.model.state_dict()
    changed = {name.split(".")[0] for name in origin if not torch.equal(learnt[name], origin[name])}
    every = {name.split(".")[0] for name in origin}
    assert changed == ({"backbone"} if freezes else every)
