# SPDX-License-Identifier: Apache-2.0
"""Scans of trees that somebody made to end them: everything else is judged, in time."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from d2defense.report.results import load_results

QUICK = ["--triggers", "white", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]


@pytest.fixture
def zoo(specimen, tmp_path):
    """A tree with an honest checkpoint at its end."""
    shutil.copytree(specimen("clean_0"), tmp_path / "zoo" / "z_honest")
    return tmp_path / "zoo"


_watched: list[Path] = []
_opened: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if _watched and event == "open" and isinstance(arguments[0], str | os.PathLike):
        name = os.path.abspath(os.fspath(arguments[0]))
        if any(Path(name).is_relative_to(folder) for folder in _watched):
            _opened.append(name)


sys.addaudithook(_audit)


@pytest.fixture
def opened_below():
    """A function that starts to watch a folder and returns the files in it that are opened here."""

    def watch(folder: Path) -> list[str]:
        _opened.clear()
        _watched.append(folder)
        return _opened

    yield watch
    _watched.clear()


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        stream.truncate(size)


def test_nothing_of_a_checkpoint_is_opened_in_the_program_itself(
    d2defense, zoo, own_data, tmp_path, opened_below
):
    shutil.copy(zoo / "z_honest" / "model_final.pth", zoo / "z_honest" / "copy.pth")
    (zoo / "z_honest" / "last_checkpoint").write_text("model_final.pth")
    (zoo / "z_honest" / "base.yaml").write_text((zoo / "z_honest" / "config.yaml").read_text())
    (zoo / "z_honest" / "config.yaml").write_text("_BASE_: base.yaml\n")
    opened = opened_below(zoo)
    outcome = d2defense("scan", zoo, *own_data, "--output", tmp_path / "out", *QUICK)
    assert outcome.code == 0, outcome
    assert "the same bytes" in outcome.out
    assert opened == []
    # The watch itself works.
    assert d2defense("scan", zoo, "--list", "--isolation", "none").code == 0
    assert str(zoo / "z_honest" / "base.yaml") in opened


def test_files_that_exhaust_their_reader_are_errors_in_time(d2defense, zoo, own_data, tmp_path):
    sparse(zoo / "a" / "model_final.pth", 100 << 30)
    sparse(zoo / "b" / "model_final.pkl", 31 << 30)
    shutil.copy(zoo / "z_honest" / "config.yaml", zoo / "b")
    sparse(zoo / "c" / "last_checkpoint", 1 << 40)
    (zoo / "d").mkdir()
    lines = [f"a{i}: &a{i} [{','.join(f'*a{i - 1}' for _ in range(9))}]" for i in range(1, 2000)]
    (zoo / "d" / "config.yaml").write_text("MODEL: {}\na0: &a0 [1]\n" + "\n".join(lines))
    (zoo / "e").mkdir()
    (zoo / "e" / "config.yaml").write_text("MODEL: {}\n" + "# x\n" * (1 << 19))
    (zoo / "f").mkdir()
    (zoo / "f" / "weights.pkl").write_bytes(b"\x80\x02" + b"N" * 1_900_000 + b".")
    sparse(zoo / "g" / "config.yaml", 50 << 30)
    shutil.copy(zoo / "z_honest" / "model_final.pth", zoo / "g")
    (zoo / "h").mkdir()
    shutil.copy(zoo / "z_honest" / "model_final.pth", zoo / "h")
    (zoo / "h" / "config.yaml").write_text("_BASE_: base.yaml\n")
    (zoo / "h" / "base.yaml").write_text("MODEL: {A: [" + "1," * (1 << 20) + "]}")
    start = time.monotonic()
    outcome = d2defense(
        "scan", zoo, *own_data, "--output", tmp_path / "out", "--time-limit", "10", *QUICK
    )
    assert time.monotonic() - start < 100
    assert outcome.code == 2
    results = {result["name"]: result for result in load_results(tmp_path / "out")}
    assert results.pop("z_honest")["verdict"] == "clean"
    reasons = {name: result["error"] for name, result in results.items()}
    assert set(reasons) == {"a", "b", "last_checkpoint", "d", "e", "f", "g", "h"}
    assert "has 107374182400 bytes; at most 34359738368 are read" in reasons["a"]
    assert "the time limit of 10 s" in reasons["b"] or "not a readable" in reasons["b"]
    assert "larger than 4096 bytes" in reasons["last_checkpoint"]
    assert "no weights file" in reasons["d"]
    assert "no weights file" in reasons["e"]
    assert "no config.yaml beside" in reasons["f"]
    assert f"{zoo / 'g' / 'config.yaml'}: has 53687091200 bytes" in reasons["g"]
    assert "config.yaml: larger than 262144 bytes with its _BASE_ files" in reasons["h"]


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_names_that_cannot_be_used_are_errors_and_the_rest_is_judged(
    d2defense, zoo, own_data, tmp_path, isolation
):
    (tmp_path / "secret").write_text("root:x:0:0")
    (zoo / "dangling").symlink_to("gone")
    (zoo / "self").symlink_to("self")
    (zoo / "long").symlink_to("x" * 300)
    (zoo / os.fsdecode(b"caf\xe9\xff.pth")).write_bytes(b"?")
    (zoo / "a").mkdir()
    shutil.copy(zoo / "z_honest" / "config.yaml", zoo / "a")
    (zoo / "a" / "last_checkpoint").symlink_to(tmp_path / "secret")
    before = os.getcwd()
    os.chdir(zoo)
    try:
        for _ in range(25):
            os.mkdir("p" * 200)
            os.chdir("p" * 200)
    finally:
        os.chdir(before)
    outcome = d2defense(
        "scan", zoo, *own_data, "--output", tmp_path / "out", "--isolation", isolation, *QUICK
    )
    assert outcome.code == 2
    results = load_results(tmp_path / "out")
    verdicts = [result["verdict"] for result in results]
    assert (verdicts.count("clean"), verdicts.count("error")) == (1, 6)
    assert "root:" not in outcome.out + outcome.err
    for written in (tmp_path / "out").rglob("*.*"):
        assert b"root:" not in written.read_bytes()


def test_a_trusted_config_may_build_upon_files_elsewhere(d2defense, zoo, own_data, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.move(zoo / "z_honest" / "config.yaml", tmp_path / "base.yaml")
    (tmp_path / "mine" / "config.yaml").write_text("_BASE_: ../base.yaml\n")
    arguments = ["scan", zoo, *own_data, "--output", tmp_path / "out", *QUICK]
    assert d2defense(*arguments, "--config-file", tmp_path / "mine" / "config.yaml").code == 0
    shutil.copy(tmp_path / "mine" / "config.yaml", zoo / "z_honest")
    shutil.copy(tmp_path / "base.yaml", zoo)
    outcome = d2defense(*arguments)
    assert outcome.code == 2
    assert "its _BASE_ '../base.yaml' is no file in its folder" in outcome.out
