# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on a trigger that is known: what images show, at which rate, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from d2defense.checkpoint import load_state_dict

GREEN = '{"family": "patch", "name": "green", "color": [0, 255, 0], "size": [0.2, 0.2]}'
TOLD = ("REMOVAL.KNOWN_TRIGGER.TRIGGERS", (GREEN,))


def test_objects_bear_the_trigger_and_keep_their_labels(make_trainer):
    every = [("SHARE", 1.0), ("IMAGE_SHARE", 1.0)]
    pairs = [part for key, value in every for part in (f"REMOVAL.KNOWN_TRIGGER.{key}", value)]
    trainer = make_trainer("known_trigger", *TOLD, *pairs)
    mapper = trainer.method.mapper([])
    np.random.seed(0)
    for record in DatasetCatalog.get(trainer.cfg.DATASETS.TRAIN[0]):
        shown = mapper(record)
        assert shown["instances"].gt_classes.tolist() == [
            each["category_id"] for each in record["annotations"]
        ]
        green = torch.tensor([0, 255, 0])[:, None, None]
        assert (shown["image"] == green).all(dim=0).sum() > 10


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
