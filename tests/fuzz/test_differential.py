# SPDX-License-Identifier: Apache-2.0
"""A bounded run of the comparison with other readers, and proof that it notices differences."""

from __future__ import annotations

import pickle
import pickletools
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from programs import as_module

from d2defense.checkpoint import pickle_machine

# PyTorch warns of protocols that its reader of weights does not expect.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")


@pytest.fixture(scope="module")
def differential() -> ModuleType:
    """The program as a module."""
    return as_module(Path(__file__).with_name("differential.py"))


@pytest.mark.no_cover
def test_all_readers_understand_alike_what_is_accepted(differential, tmp_path):
    counts = differential.run(rounds=40, seed=7, folder=tmp_path)
    for accepted, tried in counts.values():
        # Enough pass the strict reader to compare, and enough do not.
        assert 0.05 * tried < accepted < 0.95 * tried
    assert sum(tried for _, tried in counts.values()) > 4000


def careless(stream, size, dialect):
    """Opcodes as ``pickletools`` sees them."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            argument = tuple(argument.split(" ", 1))
        if opcode.name not in ("PROTO", "FRAME"):
            yield opcode.name, argument


def test_a_reader_that_ignores_frames_and_ends_is_noticed(differential, monkeypatch):
    monkeypatch.setattr(pickle_machine, "read_opcodes", careless)
    zoo, frame = differential.ZOO, differential.frame
    assert differential.compare_pickle(b"\x80\x04" + frame(b"(\x8c\x05abcdeNNNNNt."), zoo)
    for content, difference in {
        # The C unpickler drops "ab" and takes two of what follows the text.
        b"\x80\x04" + frame(b"(\x8c\x05ab") + b"cdeNNNNNt.": "C unpickler from memory sees another",
        b"\x80\x04" + frame(frame(b"N.")): "beginning of a new frame",
        b"\x80\x04N.more": "stops elsewhere",
    }.items():
        with pytest.raises((AssertionError, pickle.UnpicklingError), match=difference):
            differential.compare_pickle(content, zoo)


@pytest.mark.no_cover
def test_mutations_find_what_a_careless_reader_misses(differential, monkeypatch):
    monkeypatch.setattr(pickle_machine, "read_opcodes", careless)
    chance = random.Random(1)
    found = 0
    for data in differential.pickles():
        for _ in range(10):
            try:
                differential.compare_pickle(
                    differential.framed_elsewhere(data, chance), differential.ZOO
                )
            except Exception:  # readers fail in many ways
                found += 1
    assert found > 20


@pytest.mark.parametrize("kind", ["zoo", "torch"])
def test_other_numbers_and_names_in_a_file_are_noticed(differential, monkeypatch, tmp_path, kind):
    (data, *_), compare = {
        "zoo": (differential.zoo_files(), differential.compare_zoo_file),
        "torch": (differential.torch_files(), differential.compare_torch_file),
    }[kind]
    assert compare(data, tmp_path)
    read = differential.load_state_dict
    for change, difference in (
        (lambda state: {name: -tensor for name, tensor in state.items()}, "other numbers"),
        (lambda state: {f"x{name}": tensor for name, tensor in state.items()}, "other names"),
        (lambda state: {n: t.to(torch.float64) + 0 for n, t in state.items()}, "other numbers"),
    ):
        monkeypatch.setattr(differential, "load_state_dict", lambda path, c=change: c(read(path)))
        with pytest.raises(AssertionError, match=difference):
            compare(data, tmp_path)


def test_a_name_beyond_those_of_weights_is_noticed(differential, tmp_path, monkeypatch):
    monkeypatch.setattr(differential, "load_state_dict", lambda path: {})
    with pytest.raises(AssertionError, match=r"os\.getcwd"):
        differential.compare_zoo_file(b"\x80\x02cos\ngetcwd\n)R.", tmp_path)
