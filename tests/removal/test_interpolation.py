# SPDX-License-Identifier: Apache-2.0
"""The result of the default method lies between the checkpoint and what fine-tuning made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from d2defense.checkpoint import load_state_dict

KEPT = "REMOVAL.PATCH_AUGMENTATION.KEPT_SHARE"


@pytest.fixture
def trained(make_trainer):
    """A function from a share to the weights of a trainer that has ended, and the trainer."""

    def trained(share: float):
        trainer = make_trainer("patch_augmentation", KEPT, share)
        trainer.resume_or_load(resume=False)
        trainer.train()
        return {k: v.clone() for k, v in trainer.model.state_dict().items()}, trainer

    return trained


def test_a_share_of_the_checkpoint_is_kept(trained, untrained_checkpoint):
    origin = load_state_dict(untrained_checkpoint / "model_final.pth")
    tuned, _ = trained(0.0)
    kept, _ = trained(0.25)
    real = [name for name, tensor in origin.items() if tensor.is_floating_point()]
    assert {"backbone.bottom_up.stem.conv1.weight"} < set(real)
    for name in real:
        expected = 0.25 * origin[name].double() + 0.75 * tuned[name].double()
        torch.testing.assert_close(kept[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(tuned[name], origin[name]) for name in real)


def test_it_is_kept_once_also_by_a_training_that_is_resumed_after_its_end(trained):
    once, trainer = trained(0.5)
    written = load_state_dict(Path(trainer.cfg.OUTPUT_DIR) / "model_final.pth")
    assert all(torch.equal(written[name], once[name]) for name in once)
    again = type(trainer)(trainer.cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert all(torch.equal(again.model.state_dict()[name], once[name]) for name in once)


def test_shares_that_keep_all_or_less_than_nothing_are_refused(make_trainer):
    for share in (-0.1, 1.0):
        trainer = make_trainer("patch_augmentation", KEPT, share)
        with pytest.raises(ValueError, match="KEPT_SHARE"):
            trainer.resume_or_load(resume=False)
