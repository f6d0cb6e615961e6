# SPDX-License-Identifier: Apache-2.0
"""How a training ends that does not come to its last step."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch

from d2defense.cli.program import main
from d2defense.config import config_root
from d2defense.engine import Trainer

CONFIG = str(config_root() / "SynthSigns" / "faster_rcnn_tiny_fpn.yaml")


@pytest.fixture
def train(tmp_path, signs_cache):
    def run(*words: str) -> int:
        options = [word for word in words if word.startswith("--")]
        pairs = [word for word in words if word not in options]
        return main(
            [
                "train", "--config-file", CONFIG, *options,
                "SOLVER.IMS_PER_BATCH", "1",
                "SOLVER.MAX_ITER", "4",
                "SOLVER.CHECKPOINT_PERIOD", "1",
                "INPUT.MIN_SIZE_TRAIN", "(64,)",
                "DATASETS.TRAIN", "('synth_signs_defender',)",
                "DATASETS.TEST", "()",
                "MODEL.DEVICE", "cpu",
                "OUTPUT_DIR", str(tmp_path),
                *pairs,
            ]
        )  # fmt: skip

    return run


def iteration_of(path) -> int:
    return torch.load(path, weights_only=True)["iteration"]


@contextmanager
def at_iteration(iteration, change):
    """Do something to the losses of one iteration, however often the model is asked for them."""
    build_model, before_step = Trainer.build_model.__func__, Trainer.before_step
    now = None

    def noted(trainer):
        nonlocal now
        now = trainer.iter
        before_step(trainer)

    def build(cls, cfg):
        model = build_model(cls, cfg)
        forward = model.forward
        model.forward = lambda inputs: (
            change(forward(inputs)) if now == iteration else forward(inputs)
        )
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "build_model", classmethod(build))
        patch.setattr(Trainer, "before_step", noted)
        yield


def times(value, only=None):
    return lambda losses: {
        name: loss * float(value) if only in (None, name) else loss for name, loss in losses.items()
    }


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_loss_that_is_not_finite_ends_training_at_once(train, tmp_path, capfd, value):
    with at_iteration(2, times(value, "loss_cls")):
        assert train() == 2
    captured = capfd.readouterr()
    line = captured.err.splitlines()[-1]
    last = tmp_path / "model_0000001.pth"
    assert line.startswith("error: training stopped at iteration 2: ")
    assert line.endswith(f"last good checkpoint: {last}")
    assert "Traceback" not in captured.out + captured.err
    assert iteration_of(last) == 1
    assert not (tmp_path / "model_0000002.pth").exists()
    assert json.loads((tmp_path / "provenance.json").read_text())["result"] is None


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def infinite_gradient(losses):
    return losses | {"loss_cls": InfiniteGradient.apply(losses["loss_cls"])}


def test_weights_that_are_not_finite_are_never_the_last_good_checkpoint(train, tmp_path, capfd):
    """A finite loss whose gradient is not: the step breaks the weights."""
    with at_iteration(1, infinite_gradient):
        assert train() == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "iteration 1" in line
    assert line.endswith(f"last good checkpoint: {tmp_path / 'model_0000000.pth'}")
    assert not (tmp_path / "model_0000001.pth").exists()


def test_divergence_before_the_first_checkpoint(train, capfd):
    with at_iteration(0, times("nan")):
        assert train() == 2
    assert capfd.readouterr().err.endswith("last good checkpoint: none\n")


def test_new_training_does_not_go_on_from_an_older_one(train, tmp_path, capfd):
    """Started anew in a used folder, it ends before its first checkpoint, and is resumed."""
    assert train("SOLVER.MAX_ITER", "2") == 0
    assert iteration_of(tmp_path / "model_final.pth") == 1
    with at_iteration(0, times("nan")):
        assert train() == 2
    assert capfd.readouterr().err.endswith("last good checkpoint: none\n")
    assert train("--resume") == 0
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["first_iteration"] == 0
    assert provenance["result"]["iterations"] == 4


def test_interrupted_training_can_be_resumed(train, tmp_path, capfd):
    def interrupt(losses):
        os.kill(os.getpid(), signal.SIGINT)
        return losses

    # A shell lets its background jobs ignore the signal, and with them a test run there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with at_iteration(2, interrupt):
            assert train() == 130
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capfd.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("interrupted at iteration 2; --resume goes on from ")
    assert line.endswith("model_0000001.pth")
    assert "Traceback" not in captured.out + captured.err
    assert train("--resume") == 0
    assert iteration_of(tmp_path / "model_final.pth") == 3
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["first_iteration"] == 2
    assert provenance["result"]["iterations"] == 4


def test_finished_training_stays_as_it_is(train, tmp_path):
    assert train() == 0
    before = (tmp_path / "provenance.json").read_bytes()
    assert train("--resume") == 0
    assert (tmp_path / "provenance.json").read_bytes() == before


def test_random_seed_is_recorded_and_kept(train, tmp_path):
    assert train("SEED", "-1", "SOLVER.MAX_ITER", "1") == 0
    seed = json.loads((tmp_path / "provenance.json").read_text())["seed"]
    assert seed >= 0
    assert f"SEED: {seed}\n" in (tmp_path / "config.yaml").read_text()
    assert train("--resume", "SEED", "-1", "SOLVER.MAX_ITER", "2") == 0
    assert json.loads((tmp_path / "provenance.json").read_text())["seed"] == seed
