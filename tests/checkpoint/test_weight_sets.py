# SPDX-License-Identifier: Apache-2.0
"""Which sets of weights one file holds."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from d2defense.checkpoint import CheckpointError, load_state_dict, weight_sets


def layers(seed: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights of a small model."""
    generator = torch.Generator().manual_seed(seed)
    return {f"{prefix}layer{i}.weight": torch.rand(3, generator=generator) for i in range(12)}


def write(folder, content, suffix: str = "pth"):
    path = folder / f"model.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(arrays(content)))
    else:
        torch.save(content, path)
    return path


def arrays(content):
    """The same with arrays of NumPy instead of tensors."""
    if isinstance(content, dict):
        return {key: arrays(value) for key, value in content.items()}
    if isinstance(content, list):
        return [arrays(value) for value in content]
    return content.numpy() if isinstance(content, torch.Tensor) else content


def training_checkpoint() -> dict:
    """What Detectron2 writes while it trains, with each kind of optimizer."""
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    state = {"model": copy.deepcopy(module.state_dict()), "iteration": 9}
    for optimizer in (
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(module.parameters(), lr=0.1, amsgrad=True),
    ):
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        state[type(optimizer).__name__] = optimizer.state_dict()
    state["scheduler"] = {"base_lrs": [0.1], "last_epoch": 9}
    return state


@pytest.mark.parametrize("content", [layers(), {"model": layers()}, training_checkpoint()])
def test_most_files_hold_one_set(tmp_path, content):
    assert weight_sets(write(tmp_path, content)) == (None,)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda s: {"ema_state": s}, "ema_state"),
        (lambda s: {"state_dict": s}, "state_dict"),
        (lambda s: {"ema": {"decay": 0.99, "module": s}}, "ema.module"),
        (lambda s: {"hooks": [{}, {"shadow": s}]}, "hooks.1.shadow"),
        (lambda s: {"optimizer": {"state": s}}, "optimizer.state"),
        (lambda s: s, "top level"),
    ],
)
def test_a_second_set_beside_the_model(tmp_path, suffix, place, name):
    path = write(tmp_path, {"model": layers(), "__author__": "x"} | place(layers(1)), suffix)
    assert weight_sets(path) == (None, name)
    for member, seed in ((None, 0), (name, 1)):
        if name == "top level" and member:
            with pytest.raises(CheckpointError, match="entry 'model' of its state dict"):
                load_state_dict(path, member)
            continue
        state, expected = load_state_dict(path, member), layers(seed)
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_part_of_a_model_under_its_names(tmp_path):
    part = {"module.layer3.weight": torch.zeros(3)}
    path = write(tmp_path, {"model": layers(), "patch": part})
    assert weight_sets(path) == (None, "patch")
    assert list(load_state_dict(path, "patch")) == ["layer3.weight"]


def test_names_of_an_average_with_a_prefix(tmp_path):
    path = write(tmp_path, {"model": layers(), "average": layers(1, "module.")})
    assert list(load_state_dict(path, "average")) == list(layers())


def test_the_same_tensors_are_no_second_set(tmp_path):
    state = layers()
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    content = {"model": state, "again": dict(state), "parallel": parallel, "list": [state]}
    assert weight_sets(write(tmp_path, content)) == (None,)
    average = layers(1)
    content = {"model": state, "ema": average, "ema_again": dict(average)}
    assert weight_sets(write(tmp_path, content)) == (None, "ema")
    # Equal numbers in another place are not known to be equal without reading all of them.
    assert weight_sets(write(tmp_path, {"model": state, "copy": layers()})) == (None, "copy")


def test_tensors_in_a_list_are_a_set_that_cannot_be_opened(tmp_path):
    path = write(tmp_path, {"model": layers(), "shadow": list(layers(1).values())})
    assert weight_sets(path) == (None, "shadow")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_state_dict(path, "shadow")


def test_weights_that_detectron2_does_not_find(tmp_path):
    path = write(tmp_path, {"state_dict": layers(), "epoch": 3})
    assert weight_sets(path) == ("state_dict",)
    assert list(load_state_dict(path, "state_dict")) == list(layers())
    with pytest.raises(CheckpointError, match="entry 'state_dict' of its state dict"):
        load_state_dict(path)


@pytest.mark.parametrize(
    "content", [{"optimizer": training_checkpoint()["SGD"]}, [1, 2], torch.ones(3), {"a": 1}]
)
def test_files_without_weights(tmp_path, content):
    path = write(tmp_path, content)
    assert weight_sets(path) == ()


def test_features_in_a_list_are_no_weights(tmp_path):
    assert weight_sets(write(tmp_path, [torch.ones(3) for _ in range(50)])) == ()


def test_momenta_of_detectron_are_no_set(tmp_path):
    blobs = {f"conv{i}_w": torch.ones(2) for i in range(12)}
    blobs |= {f"{name}_momentum": tensor for name, tensor in blobs.items()}
    assert weight_sets(write(tmp_path, {"blobs": blobs, "cfg": "text"}, "pkl")) == (None,)


def test_safetensors_hold_one_set(tmp_path):
    save_file(layers(0, "module."), tmp_path / "model.safetensors")
    assert weight_sets(tmp_path / "model.safetensors") == (None,)
    assert set(load_state_dict(tmp_path / "model.safetensors")) == set(layers())


def test_names_are_printable_and_differ(tmp_path):
    path = write(tmp_path, {"model": layers(), "a\x1b[31m\n": layers(1), "b" * 500: layers(2)})
    names = weight_sets(path)[1:]
    assert len(set(names)) == 2
    assert all(name.isprintable() and len(name) <= 100 for name in names)
    nested = {"model": layers(), "a": {"b": layers(1)}, "a.b": layers(2)}
    assert weight_sets(write(tmp_path, nested)) == (None, "a.b", "a.b~1")


def test_an_unknown_set(tmp_path):
    path = write(tmp_path, {"model": layers()})
    with pytest.raises(CheckpointError, match="holds no weights under 'ema'"):
        load_state_dict(path, "ema")


def test_too_many_sets(tmp_path):
    path = write(tmp_path, {"model": layers()} | {f"x{i}": layers(i) for i in range(101)})
    with pytest.raises(CheckpointError, match="holds more than 100 sets of weights"):
        weight_sets(path)


def test_containers_that_hold_themselves_or_are_nested_deep(tmp_path):
    itself: list = [layers(1)]
    itself.append(itself)
    path = write(tmp_path, {"model": layers(), "x": itself})
    assert weight_sets(path) == (None, "x.0")
    deep: list = []
    for _ in range(300):
        deep = [deep]
    assert weight_sets(write(tmp_path, {"model": layers(), "x": deep})) == (None,)
