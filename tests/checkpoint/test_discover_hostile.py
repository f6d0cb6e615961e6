# SPDX-License-Identifier: Apache-2.0
"""No name in a tree ends the search of the rest."""

from __future__ import annotations

import os
import time

import pytest
import torch

from d2defense.checkpoint import discover, find_checkpoints, format_sources
from d2defense.checkpoint import tree as tree_module
from d2defense.checkpoint.inspection import inspect_here
from d2defense.checkpoint.tree import MAX_DEPTH

FILES = ("config.yaml", "model_final.pth")


@pytest.fixture
def zoo(output_folder, tmp_path):
    """A tree with an honest checkpoint before and after whatever a test puts into it."""
    output_folder("zoo/a_honest", *FILES)
    output_folder("zoo/z_honest", *FILES)
    return tmp_path / "zoo"


def errors(zoo) -> list:
    """The sources with an error; the honest ones must be there, too."""
    sources = find_checkpoints([zoo])
    honest = [source.name for source in sources if source.error is None]
    assert honest == ["a_honest", "z_honest"]
    return [source for source in sources if source.error is not None]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("gone", "it is a link to nothing"),
        ("{self}", "it is a link that leads in a circle"),
        ("x" * 300, "it is a link that cannot be followed: File name too long"),
        ("../" * 1000 + "gone", "it is a link to nothing"),
        ("d/" * 2040 + "gone", "it is a link "),
        ("a_honest/model_final.pth/x", "it is a link that cannot be followed: Not a directory"),
    ],
)
@pytest.mark.parametrize("name", ["middle", "model.pth"])
def test_a_link_that_cannot_be_followed_is_an_error_of_its_own(zoo, name, target, reason):
    (zoo / name).symlink_to(target.format(self=name))
    (source,) = errors(zoo)
    assert source.path == zoo / name
    assert str(source.error).startswith(f"{zoo / name}: {reason}")


def test_links_in_a_circle_and_folders_that_hold_themselves(zoo):
    (zoo / "m").mkdir()
    (zoo / "m" / "b").symlink_to(zoo)
    (zoo / "m" / "c").symlink_to("d")
    (zoo / "m" / "d").symlink_to("c")
    assert {source.path.name for source in errors(zoo)} == {"c", "d"}


def test_a_chain_of_links_longer_than_the_system_follows(zoo):
    (zoo / "m").mkdir()
    (zoo / "m" / "0").write_text("text")
    for number in range(3000):
        (zoo / "m" / str(number + 1)).symlink_to(str(number))
    sources = errors(zoo)
    assert len(sources) > 2900
    assert {source.error.reason for source in sources} == {"it is a link that leads in a circle"}


def test_links_to_one_file_are_looked_at_once(zoo):
    (zoo / "m").mkdir()
    (zoo / "m" / "0.pth").write_bytes(b"PK")
    for number in range(1, 100):
        os.link(zoo / "m" / "0.pth", zoo / "m" / f"{number}.pth")
        (zoo / "m" / f"link_{number}.pth").symlink_to("0.pth")
        (zoo / "m" / f"{number}.odd_{number}").symlink_to("0.pth")
    asked = []

    def inspector(questions):
        asked.extend(questions)
        return inspect_here(questions)

    discover([zoo], inspector=inspector)
    assert sum(question.path.parent.name == "m" for question in asked) < 6


def test_a_tree_that_takes_for_ever_to_list(zoo, monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_SECONDS", -1.0)
    (source,) = find_checkpoints([zoo])
    assert "more names than can be listed in -1 s; the rest was not" in source.error.reason


@pytest.mark.parametrize("name", ["config.yaml", "last_checkpoint"])
def test_weights_under_the_name_of_something_else(zoo, name):
    (zoo / "m").mkdir()
    torch.save({"model": {"a": torch.ones(3)}}, zoo / "m" / name)
    (source,) = errors(zoo)
    assert source.error.reason in (
        "holds weights, and there is no config for them", "no config.yaml beside last_checkpoint",
    )  # fmt: skip
    if name == "last_checkpoint":
        (zoo / "m" / "config.yaml").write_text("MODEL: {}")
        (source,) = (s for s in find_checkpoints([zoo]) if s.name == "m")
        assert source.weights == zoo / "m" / name


@pytest.mark.no_cover
@pytest.mark.parametrize("only_final", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tens_of_thousands_of_weights_take_no_time(zoo, only_final):
    (zoo / "m").mkdir()
    (zoo / "m" / "config.yaml").write_text("MODEL: {}")
    (zoo / "m" / "0.pth").write_bytes(b"PK")
    for number in range(1, 8000):
        os.link(zoo / "m" / "0.pth", zoo / "m" / f"{number}.pth")
    for number in range(8000):
        (zoo / f"n{number}").mkdir()
        os.link(zoo / "m" / "config.yaml", zoo / f"n{number}" / "config.yaml")
        os.link(zoo / "m" / "0.pth", zoo / f"n{number}" / "model_final.pth")
    start = time.process_time()
    discover([zoo], only_final=only_final)
    assert time.process_time() - start < 25


def test_names_that_are_no_utf8(zoo):
    name = os.fsdecode(b"caf\xe9\xff.pth")
    (zoo / name).write_bytes(b"?")
    (zoo / "other.pth").write_bytes(b"?")
    (zoo / os.fsdecode(b"\xffdir")).mkdir()
    (zoo / os.fsdecode(b"\xffdir") / "x.pkl").write_bytes(b"?")
    found = errors(zoo)
    assert {source.path for source in found} == {
        zoo / name, zoo / "other.pth", zoo / os.fsdecode(b"\xffdir"),
    }  # fmt: skip
    text = format_sources(find_checkpoints([zoo]))
    assert text.replace("\n", "").isprintable()
    text.encode("utf-8")


def test_paths_that_are_too_long_and_folders_too_deep(zoo):
    before = os.getcwd()
    os.chdir(zoo)
    try:
        for _ in range(30):  # 30 times 200 characters are more than a path may have
            os.mkdir("p" * 200)
            os.chdir("p" * 200)
    finally:
        os.chdir(before)
    path = zoo / "q"
    for _ in range(MAX_DEPTH + 3):
        path = path / "d"
    path.mkdir(parents=True)
    long, deep = errors(zoo)
    assert "cannot be read: File name too long" in long.error.reason
    assert f"lies deeper than {MAX_DEPTH} folders" in deep.error.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read(zoo):
    (zoo / "m").mkdir(mode=0)
    (source,) = errors(zoo)
    assert source.error.reason == "cannot be read: Permission denied"


def test_a_folder_that_cannot_be_listed(zoo, monkeypatch):
    # As one without permissions, which a test that root runs would be allowed to read.
    (zoo / "m").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "m":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(tree_module.os, "scandir", refuse)
    (source,) = errors(zoo)
    assert (source.path, source.error.reason) == (zoo / "m", "cannot be read: Permission denied")


def test_links_out_of_the_tree_are_not_followed(zoo, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.pth").write_bytes(b"?")
    (outside / "notes").write_text("secret")
    (zoo / "folder").symlink_to(outside)
    (zoo / "notes").symlink_to(outside / "notes")
    (zoo / "weights").symlink_to(outside / "x.pth")
    found = discover([zoo])
    (error,) = (source for source in found.sources if source.error)
    assert (error.path, error.error.reason) == (
        zoo / "weights", f"it is a link that leads out of {zoo}",
    )  # fmt: skip
    assert {path for path, _ in found.left_out} == {zoo / "folder", zoo / "notes"}
    text = format_sources(*found)
    assert f"left out: {zoo / 'notes'}: is a link that leads out of {zoo}; it is not" in text
    assert "secret" not in text


def test_pipes_and_sockets_are_not_waited_for(zoo):
    os.mkfifo(zoo / "notes")
    os.mkfifo(zoo / "model.pth")
    os.mkfifo(zoo / "last_checkpoint")
    assert {source.path.name for source in errors(zoo)} == {"model.pth", "last_checkpoint"}


def test_a_last_checkpoint_of_a_terabyte_is_not_read(zoo):
    with open(zoo / "a_honest" / "last_checkpoint", "wb") as stream:
        stream.truncate(1 << 40)
    start = time.monotonic()
    (source,) = errors(zoo)
    assert source.error.reason == "larger than 4096 bytes"
    assert time.monotonic() - start < 5


def test_more_names_than_anybody_has_are_not_listed(zoo, monkeypatch):
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 100)
    (zoo / "m").mkdir()
    for number in range(200):
        (zoo / "m" / str(number)).touch()
    sources = find_checkpoints([zoo])
    reasons = [source.error.reason for source in sources if source.error]
    assert reasons == ["more than 100 files and folders; the rest was not looked at"]


@pytest.mark.no_cover
def test_thousands_of_folders_of_one_name_take_no_time(tmp_path):
    for number in range(4000):
        folder = tmp_path / str(number) / "run"
        folder.mkdir(parents=True)
        (folder / "x.pth").touch()
    start = time.process_time()
    sources = find_checkpoints([tmp_path])
    assert time.process_time() - start < 15
    assert len({source.name for source in sources}) == 4000
    assert sources[-1].name == "run_4000"


def test_names_differ_also_where_case_does_not_count(output_folder):
    paths = [
        output_folder(f"{place}/{name}", *FILES)
        for place, name in (("x", "A"), ("y", "a"), ("z", "A"))
    ]
    names = [source.name for source in find_checkpoints(paths)]
    assert len({name.casefold() for name in names}) == 3


def test_a_config_above_serves_the_weights_below_only_if_it_is_of_detectron2(output_folder):
    folder = output_folder("tree", **{"config.yaml": "log_level: info"})
    output_folder("tree/sub", "x.pth")
    (source,) = find_checkpoints([folder])
    assert "no config.yaml beside" in source.error.reason
    (folder / "config.yaml").write_text("MODEL: {}")
    (source,) = find_checkpoints([folder])
    assert source.config == folder / "config.yaml"
