# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from d2defense.checkpoint import CheckpointError
from d2defense.engine.checkpointer import TrainingCheckpointer


@pytest.fixture
def model():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))


def test_kill_while_writing_leaves_the_previous_checkpoint(model, tmp_path, monkeypatch):
    checkpointer = TrainingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    before = (tmp_path / "model_0000001.pth").read_bytes()

    def half(content, stream):
        stream.write(b"half a checkpoint")
        stream.flush()
        assert not (tmp_path / "model_0000002.pth").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    for name in ("model_0000001", "model_0000002"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name, iteration=2)
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000001.pth",
    ]
    assert TrainingCheckpointer(model, str(tmp_path)).resume_or_load("")["iteration"] == 1


@pytest.mark.parametrize("key", ["0.weight", "1.running_var"])
def test_broken_weights_are_not_saved(model, tmp_path, key):
    checkpointer = TrainingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    model.state_dict()[key].view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError, match=key):
        checkpointer.save("model_0000002")
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    assert not (tmp_path / "model_0000002.pth").exists()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_not_executed(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": {"0.weight": Touch(tmp_path / "executed")}}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: .*it was not executed"):
        TrainingCheckpointer(model, "").load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "executed").exists()


def test_partial_files_of_a_kill_are_removed(model, tmp_path):
    (tmp_path / ".model_0000003.pth.x1y2").write_bytes(b"half")
    (tmp_path / ".config.yaml.x1y2").write_bytes(b"not ours")
    TrainingCheckpointer(model, str(tmp_path)).remove_partial_files()
    assert [path.name for path in tmp_path.iterdir()] == [".config.yaml.x1y2"]


def test_model_zoo_pickles_are_read_without_unpickling(model, tmp_path):
    arrays = {"0.weight": np.full((2, 2), 3.0, np.float32), "0.bias": np.ones(2, np.float32)}
    zoo = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(zoo))
    TrainingCheckpointer(model, "").load(str(tmp_path / "R-50.pkl"))
    assert torch.equal(model[0].weight, torch.full((2, 2), 3.0))
    assert torch.equal(model[1].running_var, torch.ones(2))
    zoo["model"]["0.bias"] = Touch(tmp_path / "executed")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(zoo))
    with pytest.raises(CheckpointError, match=r"evil\.pkl: not a safe model-zoo pickle"):
        TrainingCheckpointer(model, "").load(str(tmp_path / "evil.pkl"))
    assert not (tmp_path / "executed").exists()
