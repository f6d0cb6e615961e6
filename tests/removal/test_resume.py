# SPDX-License-Identifier: Apache-2.0
"""A fine-tuning that was killed goes on, and goes the way of one that was not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from detectron2.engine import HookBase

from d2defense.checkpoint import load_state_dict
from d2defense.workflows import fine_tuning, unfinished
from d2defense.workflows.fine_tuning import FineTuningOptions, ProgressHook, fine_tune

OVERRIDES = [
    "REMOVAL.SOLVER.MAX_ITER", "6",
    "REMOVAL.SOLVER.IMS_PER_BATCH", "2",
    "REMOVAL.SOLVER.WARMUP_ITERS", "2",
    "REMOVAL.UNLEARN.ITER_FACTOR", "1.0",
    "REMOVAL.UNLEARN.TRIGGERS", "2",
    "REMOVAL.UNLEARN.STEPS", "1",
    "REMOVAL.UNLEARN.EVERY", "1",
]  # fmt: skip


class Killed(Exception):
    """As a kill: nothing after it runs."""


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(unfinished, "_PERIOD", 0.0)


@pytest.fixture
def tune(source, defender):
    def tune(output, method="unlearn", resume=False, seed=0, say=None, data=defender):
        options = FineTuningOptions(method=method, seed=seed, overrides=OVERRIDES)
        return fine_tune(source, data, output, options, "cpu", say, resume)

    return tune


@pytest.fixture
def killed(tune, monkeypatch):
    """Fine-tune into a folder, and be killed after some steps."""

    def killed(output, steps: int, **options) -> None:
        class Kill(ProgressHook, HookBase):
            def before_step(self) -> None:
                if self.trainer.iter == steps:
                    raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(fine_tuning, "ProgressHook", Kill)
            with pytest.raises(Killed):
                tune(output, **options)

    return killed


def weights(folder) -> dict[str, torch.Tensor]:
    return load_state_dict(folder / "model_final.pth")


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one | two)


@pytest.mark.parametrize("method", ["unlearn", "patch_augmentation"])
def test_a_killed_one_goes_the_way_of_one_that_was_not(tune, killed, often, tmp_path, method):
    whole = tune(tmp_path / "whole", method).output_dir
    killed(tmp_path / "parts", 3, method=method)
    assert not (tmp_path / "parts" / "model_final.pth").exists()
    said = []
    done = tune(tmp_path / "parts", method, resume=True, say=said.append)
    assert said[0] == "Going on from step 3 of 6."
    assert same(weights(whole), weights(done.output_dir))
    left = {path.name for path in done.output_dir.iterdir() if ".tfevents." not in path.name}
    assert left == {
        "config.yaml", "fine_tuning.json", "log.txt", "metrics.json", "model_final.pth"
    }  # fmt: skip


def test_what_is_done_is_not_done_again(tune, killed, tmp_path):
    first = tune(tmp_path, "vanilla")
    before = (tmp_path / "model_final.pth").stat().st_mtime_ns
    again = tune(tmp_path, "vanilla", resume=True)
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == before
    assert dataclasses.astuple(again) == dataclasses.astuple(first)
    (tmp_path / "model_final.pth").write_bytes(b"junk")
    tune(tmp_path, "vanilla", resume=True)
    weights(tmp_path)


def test_something_else_is_not_gone_on_with(
    tune, killed, often, tmp_path, make_coco_dataset, sign_scenes
):
    killed(tmp_path, 3, method="vanilla")
    for other in ({"method": "unlearn"}, {"seed": 1}):
        with pytest.raises(ValueError, match="begun anew"):
            tune(tmp_path, **{"method": "vanilla", **other}, resume=True)
    metadata = make_coco_dataset(sign_scenes(3))
    with pytest.raises(ValueError, match="begun anew"):
        tune(tmp_path, "vanilla", resume=True, data=metadata)
    said = []
    tune(tmp_path, "ftt", say=said.append)
    assert not any("Going on" in line for line in said)
    weights(tmp_path)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_final.pth"]


def test_without_anything_to_go_on_from_it_begins(tune, killed, tmp_path):
    killed(tmp_path / "early", 2, method="vanilla")
    one = tune(tmp_path / "early", "vanilla", resume=True).output_dir
    two = tune(tmp_path / "new", "vanilla", resume=True).output_dir
    assert same(weights(one), weights(two))


def test_only_the_last_checkpoint_is_kept_meanwhile(killed, often, tmp_path):
    killed(tmp_path, 4, method="vanilla")
    assert [path.name for path in tmp_path.glob("*.pth")] == ["unfinished_0000003.pth"]
