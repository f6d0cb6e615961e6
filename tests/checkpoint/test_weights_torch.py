# SPDX-License-Identifier: Apache-2.0
"""``.pth`` files, compared bit by bit with what PyTorch and Detectron2 load themselves."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn
from torch.utils.serialization import config

from d2defense.checkpoint import CheckpointError, load_state_dict
from d2defense.checkpoint.weights import open_weights

NUMBERS = torch.arange(24.0)
TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
# Each is a state dict that some training writes.
STATES = {
    "every type": {str(t): (NUMBERS % 5).to(t).reshape(2, 3, 4) for t in TYPES},
    "no numbers": {"none": torch.zeros(0), "no rows": torch.zeros(0, 3), "one": torch.tensor(2.5)},
    "one memory": {
        "all": NUMBERS,
        "again": NUMBERS,
        "part": NUMBERS[5:9],
        "turned": NUMBERS.reshape(2, 3, 4).permute(2, 0, 1),
        "steps": NUMBERS[1::3],
        "windows": NUMBERS[:12].unfold(0, 3, 1)[:4],
    },
    "not a number": {"w": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])},
    "parameters": dict(nn.Linear(3, 2).named_parameters()),
    "of a module": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(),
    "ordered": OrderedDict(a=NUMBERS, b=-NUMBERS),
    "channels last": {"w": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)},
    "many": {f"layer{number}.weight": torch.rand(number % 7 + 1) for number in range(300)},
    "names": {"größe\N{SNOWMAN}": torch.ones(1), "": torch.ones(2), "a b\n": torch.ones(3)},
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(state) == list(other)
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert bits(tensor) == bits(other[name]), name


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"iteration": 3, "model": s, "x": [s]}])
def test_the_tensors_are_those_of_torch_load(tmp_path, kind, wrap):
    path = tmp_path / "model.pth"
    torch.save(wrap(STATES[kind]), path)
    state = load_state_dict(path)
    for options in ({"weights_only": True}, {"weights_only": False}, {"mmap": True}):
        loaded = torch.load(path, map_location="cpu", **options)
        assert_same(state, loaded.get("model", loaded))
    with config.patch("load.calculate_storage_offsets", True):
        loaded = torch.load(path, map_location="cpu", mmap=True)
        assert_same(state, loaded.get("model", loaded))


def test_tensors_of_one_memory_share_it_again(tmp_path):
    torch.save(STATES["one memory"], tmp_path / "model.pth")
    state = load_state_dict(tmp_path / "model.pth")
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == 1


@pytest.mark.parametrize(
    "name", ["model_final.pth", "größe.pth", "a b.pth", "model_0000009.pth", "data.pth", "x" * 90]
)
def test_the_folder_in_the_archive_is_named_after_the_file(tmp_path, name):
    written = tmp_path / name
    torch.save({"model": STATES["ordered"]}, written)
    path = written.rename(tmp_path / "model.pth")
    assert_same(load_state_dict(path), STATES["ordered"])


def test_an_archive_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATES["ordered"], tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(load_state_dict(tmp_path / "model.pth"), STATES["ordered"])


def test_only_what_is_wanted_of_a_file_is_read(tmp_path):
    # The rest of a storage takes memory that the tensors themselves do not need.
    large = torch.zeros(5_000_000)
    torch.save({"w": large[10:12]}, tmp_path / "model.pth")
    tensor = load_state_dict(tmp_path / "model.pth")["w"]
    assert tensor.tolist() == [0, 0]
    assert tensor.untyped_storage().nbytes() == 8


def test_a_file_that_changes_between_check_and_reading(tmp_path):
    for name, write in {
        "model.pth": lambda path: torch.save({"w": torch.ones(2)}, path),
        "model.pkl": lambda path: path.write_bytes(
            pickle.dumps({"model": {"w": np.ones(2)}, "__author__": "x"})
        ),
    }.items():
        path = tmp_path / name
        write(path)
        file = open_weights(path)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(CheckpointError, match="has changed while it was read"):
            file.load()


class Net(nn.Module):
    """Two layers whose names Detectron2's heuristics can align."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)


def detectron2_s(path, model: nn.Module) -> dict[str, torch.Tensor]:
    """What Detectron2's checkpointer makes of a file."""
    DetectionCheckpointer(model).load(str(path))
    return model.state_dict()


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("parallel", [False, True])
def test_names_of_data_parallel_are_read_as_detectron2_reads_them(tmp_path, suffix, parallel):
    state = (nn.DataParallel(Net()) if parallel else Net()).state_dict()
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"model": state}, path)
    else:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    assert next(iter(state)).startswith("module.") == parallel
    assert_same(load_state_dict(path), detectron2_s(path, Net()))


def test_module_is_taken_off_only_where_all_names_have_it(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "model.pth")
    assert list(load_state_dict(tmp_path / "model.pth")) == list(state)
    torch.save({"module.module.a": torch.ones(1)}, tmp_path / "model.pth")
    assert list(load_state_dict(tmp_path / "model.pth")) == ["module.a"]


def test_versions_of_modules_are_read(tmp_path):
    for model in (Net(), nn.DataParallel(Net())):
        torch.save(model.state_dict(), tmp_path / "model.pth")
        versions = open_weights(tmp_path / "model.pth").versions
        assert {k: versions[k] for k in ("stem", "norm")} == {"stem": 1, "norm": 2}


@pytest.mark.parametrize("author", ["Caffe2", "torchvision"])
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_who_wrote_a_file_counts_in_every_format(tmp_path, suffix, author):
    content = {"model": {"w": np.ones(1)}, "__author__": author, "matching_heuristics": True}
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save(content | {"model": {"w": torch.ones(1)}}, path)
    else:
        path.write_bytes(pickle.dumps(content))
    file = open_weights(path)
    assert file.matching_heuristics
    assert file.caffe2 == (author == "Caffe2")
