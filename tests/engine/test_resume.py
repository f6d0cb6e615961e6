# SPDX-License-Identifier: Apache-2.0
"""A training that was killed and resumed ends with the weights of one that was not."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from programs import Program

from d2defense.cli.program import main
from d2defense.config import config_root

PERIOD = 4
ODA = "faster_rcnn_tiny_fpn_oda"


def command(config: str, output: Path, *opts: object) -> list[str]:
    return [
        "train", "--config-file", str(config_root() / "SynthSigns" / f"{config}.yaml"), *opts,
        "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.WARMUP_ITERS", "3",
        "SOLVER.CHECKPOINT_PERIOD", str(PERIOD),
        "INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)",
        "DATASETS.TRAIN", "('synth_signs_defender',)",
        "DATASETS.TEST", "()",
        "ATTACK.POISONING_RATE", "0.4",
        "MODEL.DEVICE", "cpu",
        "SEED", "3",
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip


def resumed(arguments: list[str]) -> list[str]:
    return [*arguments[:3], "--resume", *arguments[3:]]


def checkpoint(folder: Path) -> dict:
    """Weights, optimizer, schedule and iteration at the end of a training."""
    return torch.load(folder / "model_final.pth", weights_only=True)


def same(one: object, other: object) -> bool:
    """Whether two checkpoints are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def kill(arguments: list[str], moment) -> None:
    """Run a command and kill it as soon as ``moment()`` is true."""
    program = Program(*arguments)
    while not moment() and program.is_running():
        time.sleep(0.005)
    program.send_signal(signal.SIGKILL)
    ended = program.end()
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]


@pytest.mark.usefixtures("signs_cache")
def test_killed_and_resumed_training_ends_with_the_same_weights(tmp_path):
    length = ("SOLVER.MAX_ITER", "18")
    assert main([*command(ODA, tmp_path / "whole"), *length]) == 0
    arguments = [*command(ODA, tmp_path / "killed"), *length]
    kill(arguments, (tmp_path / "killed" / "last_checkpoint").exists)
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    assert main(resumed(arguments)) == 0
    assert same(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.3, 0.6])
@pytest.mark.usefixtures("signs_cache")
def test_moment_of_the_kill_does_not_matter(tmp_path, seconds):
    """Checkpoints at every step: kills fall into the writing of one, too."""
    often = (
        "SOLVER.MAX_ITER",
        "30",
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
        "DATALOADER.NUM_WORKERS",
        "2",
    )
    assert main([*command(ODA, tmp_path / "whole"), *often]) == 0
    arguments = [*command(ODA, tmp_path / "killed"), *often]
    started = []

    def moment() -> bool:
        if (tmp_path / "killed" / "last_checkpoint").exists() and not started:
            started.append(time.monotonic())
        return bool(started) and time.monotonic() - started[0] >= seconds

    kill(arguments, moment)
    assert main(resumed(arguments)) == 0
    assert same(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole"))
    assert not list((tmp_path / "killed").glob(".model_*"))


def interrupted(whole: Path, folder: Path, iteration: int) -> Path:
    """What a training has left when it was killed some time after ``iteration``."""
    folder.mkdir()
    name = f"model_{iteration:07d}.pth"
    shutil.copy(whole / name, folder)
    (folder / "last_checkpoint").write_text(name)
    return folder


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        ("faster_rcnn_tiny_fpn", ("SOLVER.OPTIMIZER", "SGD")),
        (ODA, ("DATALOADER.ASPECT_RATIO_GROUPING", "False", "TEST.EVAL_PERIOD", "3")),
        (
            "faster_rcnn_tiny_fpn_renewal",
            ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
             "DATALOADER.REPEAT_THRESHOLD", "0.9"),
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("signs_cache")
def test_resumed_training_ends_with_the_same_weights(tmp_path, untrained_checkpoint, config, opts):
    opts = ("SOLVER.MAX_ITER", "7", *opts)
    if config.endswith("renewal"):
        opts = (*opts, "MODEL.WEIGHTS", str(untrained_checkpoint / "model_final.pth"))
    assert main([*command(config, tmp_path / "whole"), *opts]) == 0
    folder = interrupted(tmp_path / "whole", tmp_path / "resumed", PERIOD - 1)
    opts = (*opts, "DATALOADER.NUM_WORKERS", "2")
    assert main([*resumed(command(config, folder)), *opts]) == 0
    assert same(checkpoint(folder), checkpoint(tmp_path / "whole"))
