# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on a trigger that is known: what images show, at which rate, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from d2defense.checkpoint import load_state_dict

GREEN = '{"family": "patch", "name": "green", "color": [0, 255, 0], "size": [0.2, 0.2]}'
TOLD = ("REMOVAL.KNOWN_TRIGGER.TRIGGERS", (GREEN,))


def test_objects_bear_the_trigger_and_the_teacher_sees_them_without(make_trainer, monkeypatch):
    every = [("SHARE", 1.0), ("IMAGE_SHARE", 1.0)]
    pairs = [part for key, value in every for part in (f"REMOVAL.KNOWN_TRIGGER.{key}", value)]
    trainer = make_trainer("known_trigger", *TOLD, *pairs)
    trainer.resume_or_load(resume=False)
    method, model = trainer.method, trainer.model.train()
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    before = [image["image"].clone() for image in batch]
    learnt, taught = [], []
    own, preprocess = model.losses_and_features, method._distillation.teacher.preprocess_image
    monkeypatch.setattr(
        model, "losses_and_features", lambda images: learnt.extend(images) or own(images)
    )
    monkeypatch.setattr(
        method._distillation.teacher,
        "preprocess_image",
        lambda images: taught.extend(images) or preprocess(images),
    )
    np.random.seed(0)
    with EventStorage(0):
        losses = method.losses(model, batch)
    assert losses["loss_distillation"] > 0
    green = torch.tensor([0, 255, 0])[:, None, None]
    assert len(batch) == len(learnt) == len(taught)
    for image, pixels, shown, seen in zip(batch, before, learnt, taught, strict=True):
        assert shown["instances"] is image["instances"]
        assert (shown["image"] == green).all(dim=0).sum() > 10
        assert torch.equal(seen["image"], pixels)


def test_without_a_teacher_the_losses_are_the_detectors_own(make_trainer):
    trainer = make_trainer("known_trigger", *TOLD, "REMOVAL.KNOWN_TRIGGER.DISTILLATION", 0.0)
    trainer.resume_or_load(resume=False)
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    with EventStorage(0):
        assert "loss_distillation" not in trainer.method.losses(trainer.model.train(), batch)


def test_the_rate_is_lower(make_trainer):
    rates = [
        make_trainer(method, *pairs).cfg.SOLVER.BASE_LR
        for method, pairs in (("vanilla", ()), ("known_trigger", TOLD))
    ]
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_a_share_of_the_checkpoint_is_kept(make_trainer, untrained_checkpoint):
    origin = load_state_dict(untrained_checkpoint / "model_final.pth")
    moved = []
    for share in (0.0, 0.3):
        trainer = make_trainer("known_trigger", *TOLD, "REMOVAL.KNOWN_TRIGGER.KEPT_SHARE", share)
        torch.manual_seed(0)
        np.random.seed(0)
        trainer.resume_or_load(resume=False)
        trainer.train()
        state = trainer.model.state_dict()
        moved.append({name: state[name] - origin[name] for name in origin})
    name = max(moved[0], key=lambda name: float(moved[0][name].float().norm()))
    assert float(moved[1][name].norm() / moved[0][name].norm()) == pytest.approx(0.7, abs=0.15)


def test_without_a_trigger_there_is_nothing_to_go_by(make_trainer):
    with pytest.raises(ValueError, match=r"REMOVAL\.KNOWN_TRIGGER\.TRIGGERS names; there is none"):
        make_trainer("known_trigger")


@pytest.mark.parametrize(
    "entry",
    [
        "green",
        "[]",
        '{"family": "patch"}',
        '{"family": "no such", "name": "green"}',
        '{"family": "patch", "name": "green", "size": [0, 0]}',
    ],
)
def test_what_is_no_trigger_is_refused(make_trainer, entry):
    with pytest.raises(ValueError, match=r"REMOVAL\.KNOWN_TRIGGER\.TRIGGERS"):
        make_trainer("known_trigger", "REMOVAL.KNOWN_TRIGGER.TRIGGERS", (entry,))
