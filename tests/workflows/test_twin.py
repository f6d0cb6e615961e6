# SPDX-License-Identifier: Apache-2.0
"""The twin in the output of a scan: a checkpoint like any other, if it is one at all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from d2defense.checkpoint import build_detector, find_checkpoints
from d2defense.detection import ScanSettings, load_clean_images
from d2defense.detection.twin import TwinError
from d2defense.workflows.scan.twin import make_twin, twin_bytes, write_twin


@pytest.fixture
def suspect(untrained_checkpoint):
    (source,) = find_checkpoints([untrained_checkpoint], only_final=True)
    return source


def test_it_can_be_opened_as_the_suspect_can(suspect, tmp_path):
    model, _ = build_detector(suspect.weights, suspect.config)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(1)
    # As a search leaves it where convolutions are faster so.
    model.to(memory_format=torch.channels_last)
    write_twin(tmp_path, suspect, "a", twin_bytes(model))
    (twin,) = find_checkpoints([tmp_path / "twin"], only_final=True)
    assert twin.error is None
    opened, _ = build_detector(twin.weights, twin.config)
    pairs = zip(opened.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert twin.config.read_bytes() == suspect.config.read_bytes()


def test_one_that_would_take_too_long_is_not_made(suspect, make_coco_dataset, sign_scenes):
    model, cfg = build_detector(suspect.weights, suspect.config)
    images = list(load_clean_images(make_coco_dataset(sign_scenes(4)).load(), cfg))
    task = SimpleNamespace(settings=ScanSettings())
    done = []
    with pytest.raises(TwinError, match="too much of the time limit"):
        make_twin(task, model, images, done.append, seconds=1.0)
    assert len(done) < 5


@pytest.mark.parametrize(
    "content",
    [
        b"not safetensors",
        safetensors.torch.save({"a": torch.zeros(1000)})[:-5],
        safetensors.torch.save({"a" * 100_000: torch.zeros(1)}),
    ],
    ids=["other", "cut", "name"],
)
def test_what_is_no_weights_file_is_left_out(suspect, tmp_path, caplog, content):
    write_twin(tmp_path, suspect, "a", content)
    assert not list(tmp_path.iterdir())
    assert "a: its twin is left out" in caplog.text


def test_without_a_twin_there_is_no_folder(suspect, tmp_path):
    write_twin(tmp_path, suspect, "a", b"")
    assert not list(tmp_path.iterdir())
