# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch

from d2defense.checkpoint import (
    CheckpointError,
    file_sha256,
    load_state_dict,
    nonfinite_tensors,
    save_state_dict,
)

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3) / 7, "count": torch.tensor(5)}


def refused(path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_state_dict(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def equal(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "content",
    [STATE, {"model": STATE}, {"model": STATE, "optimizer": {"state": {}}, "iteration": 9}],
    ids=["bare", "published", "training checkpoint"],
)
def test_reads_what_detectron2_and_torch_write(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    assert equal(load_state_dict(path), STATE)


def test_round_trip(tmp_path):
    path = save_state_dict(tmp_path / "new" / "model.pth", STATE)
    assert equal(load_state_dict(path), STATE)
    assert torch.load(path, weights_only=True).keys() == {"model"}


def test_half_precision_storage_keeps_integers(tmp_path):
    path = save_state_dict(tmp_path / "model.pth", STATE, torch.float16)
    stored = load_state_dict(path)
    assert stored["layer.weight"].dtype == torch.float16
    assert torch.equal(stored["layer.weight"], STATE["layer.weight"].half())
    assert stored["count"].dtype == torch.int64


def test_saving_leaves_the_tensors_alone_and_no_other_file(tmp_path):
    state = {"weight": torch.nn.Parameter(torch.ones(3))}
    save_state_dict(tmp_path / "model.pth", state, torch.float16)
    assert state["weight"].dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("where", ["model", "optimizer"])
def test_pickled_code_is_refused_and_not_executed(tmp_path, payload, canary, where):
    path = tmp_path / "model.pth"
    torch.save({"model": STATE, where: payload}, path)
    refused(path, "not a safe PyTorch checkpoint")
    assert not canary.exists()


def test_plain_pickle_of_code_is_refused_and_not_executed(tmp_path, payload, canary):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(payload))
    refused(path, "not a zip archive, as PyTorch writes them")
    assert not canary.exists()
    pickle.loads(path.read_bytes()).close()
    assert canary.exists()  # the payload works where nobody takes care


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path, share):
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.rand(100, 100)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "PyTorch checkpoint")


def test_the_container_of_before_torch_1_6_is_refused_by_its_name(tmp_path, payload, canary):
    path = tmp_path / "model.pth"
    for content in ({"model": STATE}, {"model": STATE, "hooks": payload}):
        torch.save(content, path, _use_new_zipfile_serialization=False)
        refused(path, r"PyTorch before 1\.6; convert it with .*weights_only=True")
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 1000, b"not a checkpoint", b"PK\x03\x04 almost a zip file", b"\x80\x02junk"],
)
def test_junk(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(path, "PyTorch checkpoint")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {}, {"model": {}}, "text", 5])
def test_no_state_dict(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    refused(path, "no state dict")


@pytest.mark.parametrize("state", [{"a": 1}, {"a": [torch.ones(1)]}, {3: torch.ones(1)}])
def test_entries_that_are_no_tensors(tmp_path, state):
    path = tmp_path / "model.pth"
    torch.save({"model": state}, path)
    refused(path, "is no tensor")


def test_arrays_of_numpy_are_not_trusted(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": np.ones(3)}}, path)
    refused(path, "its pickle asks for more than tensors")


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "gone.pth", "cannot be opened: No such file or directory")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "cannot be opened: it is a folder")


def test_sha256(tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def write_zoo(path, arrays, protocol: int = 4, **more) -> None:
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"} | more, protocol))


@pytest.mark.parametrize("kind", ["f8", ">f4", "<f2", "i8", ">i4", "u1", "?"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_zoo_pickles(tmp_path, kind, protocol):
    numbers = np.asarray(np.arange(24).reshape(2, 3, 4) % 5, dtype=kind)
    arrays = {
        "in C's order": numbers,
        "in Fortran's order": np.asfortranarray(numbers),
        "with its axes changed": numbers.transpose(1, 0, 2),
        "a part": numbers[:, 1:, ::2],
        "large": np.asarray(np.arange(100_000) % 5, dtype=kind),
        "scalar": np.asarray(3, dtype=kind),
        "empty": np.zeros((0, 4), dtype=kind),
        "first again": numbers,
    }
    write_zoo(tmp_path / "model.pkl", arrays, protocol)
    state = load_state_dict(tmp_path / "model.pkl")
    assert list(state) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(state[name].numpy(), array)
        native = array.astype(array.dtype.newbyteorder("="))
        assert state[name].dtype == torch.from_numpy(native).dtype


def test_numbers_beside_the_arrays_of_a_zoo_pickle(tmp_path):
    more = {"iteration": np.int64(5), "lr": np.float32(0.1), "order": [1, (2, None)], "x": True}
    write_zoo(tmp_path / "model.pkl", {"w": np.ones(2, "f4")}, **more)
    assert load_state_dict(tmp_path / "model.pkl")["w"].tolist() == [1, 1]


def test_zoo_pickle_written_by_python_2(tmp_path):
    # protocol 2 of Python 2: byte strings, which are text to Python 3
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    data = np.array([1.5, -2.0], "<f4").tobytes()
    array += b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + data + b"tb"
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}U\x05blobs}U\x06conv_w" + array + b"ss.")
    assert load_state_dict(tmp_path / "model.pkl")["conv_w"].tolist() == [1.5, -2.0]


def test_weights_shared_by_two_names(tmp_path):
    shared = torch.arange(4.0)
    state = {"a": shared, "b": shared, "part": shared[1:3], "across": shared.reshape(2, 2).t()}
    torch.save({"model": state}, tmp_path / "model.pth")
    assert equal(load_state_dict(tmp_path / "model.pth"), state)


def test_a_module_s_own_state_dict_with_its_metadata(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "model.pth")
    assert equal(load_state_dict(tmp_path / "model.pth"), module.state_dict())


def test_a_whole_training_checkpoint(tmp_path):
    module = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 8])
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 9,
        "trainer": {"hooks": {"PeriodicCheckpointer": {"best": None}}, "names": {"a", "b"}},
    }
    torch.save(content, tmp_path / "model.pth")
    assert equal(load_state_dict(tmp_path / "model.pth"), module.state_dict())


@pytest.mark.parametrize("name", ["model.bin", "model.pth.tar", "model.PTH", "x.ckpt", "x"])
def test_other_endings_are_read_as_detectron2_reads_them(tmp_path, name):
    state = {"a": torch.arange(3.0)}
    torch.save({"model": state}, tmp_path / name)
    assert torch.equal(load_state_dict(tmp_path / name)["a"], state["a"])
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "not a readable PyTorch checkpoint: the file is empty")


def test_names_of_tensors_that_are_no_numbers():
    state = {"a": torch.ones(2), "b": torch.tensor([1, float("inf")]), "c": torch.ones(1).long()}
    assert nonfinite_tensors(state | {"d": torch.tensor(float("nan")).half()}) == ["b", "d"]
