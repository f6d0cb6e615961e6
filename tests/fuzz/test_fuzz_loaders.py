# SPDX-License-Identifier: Apache-2.0
"""The fuzzing program itself: its seeds reach the readers, and it notices what must not happen."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from programs import as_module


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """The program as a module."""
    return as_module(Path(__file__).with_name("fuzz_loaders.py"))


def test_seeds_are_honest_files_of_every_kind(fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "FOLDER", tmp_path)
    seeds = fuzz.seeds()
    assert {seed[0] for seed in seeds} == set(range(len(fuzz.KINDS)))
    accepted = {seed[0] for seed in seeds if fuzz.one_input(seed)}
    assert accepted == set(range(len(fuzz.KINDS)))
    assert not fuzz.one_input(b"")


def test_what_a_reader_must_not_do_is_noticed(fuzz, tmp_path, monkeypatch):
    def careless(path):
        fuzz._audit("subprocess.Popen", ())

    monkeypatch.setattr(fuzz, "FOLDER", tmp_path)
    monkeypatch.setattr(fuzz, "KINDS", [(".yaml", bytes, careless)])
    with pytest.raises(AssertionError, match=r"subprocess\.Popen"):
        fuzz.one_input(b"\x00abc")


def test_without_atheris_it_says_so_and_ends_well(fuzz, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "atheris", None)
    monkeypatch.setattr(sys, "argv", ["fuzz_loaders.py"])
    assert fuzz.main() is None
    assert "fuzzing left out" in capsys.readouterr().out
