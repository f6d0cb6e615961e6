# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re

import pytest

from d2defense.checkpoint import CheckpointError, find_checkpoints

FILES = ("config.yaml", "model_final.pth")


def only(path):
    (source,) = find_checkpoints([path])
    return source


def assert_error(source, reason: str, path=None):
    assert isinstance(source.error, CheckpointError)
    assert str(source.error).startswith(f"{path or source.path}: ")
    assert re.search(reason, str(source.error))
    assert "\n" not in str(source.error)
    assert source.weights is None
    assert source.config is None


def test_weights_file_with_its_config(output_folder):
    folder = output_folder("model", *FILES, "model_0000249.pth")
    source = only(folder / "model_0000249.pth")
    assert source.error is None
    assert source.weights == folder / "model_0000249.pth"
    assert source.config == folder / "config.yaml"


def test_output_folder_stands_for_its_final_weights(output_folder):
    folder = output_folder(
        "model", *FILES, "model_0000249.pth", last_checkpoint="model_0000249.pth"
    )
    source = only(folder)
    assert (source.name, source.weights) == ("model", folder / "model_final.pth")


def test_unfinished_run_stands_for_its_last_checkpoint(output_folder):
    folder = output_folder(
        "model", "config.yaml", "model_0000249.pth", "model_0000499.pth",
        last_checkpoint="model_0000249.pth\n",
    )  # fmt: skip
    assert only(folder).weights == folder / "model_0000249.pth"


def test_single_weights_file_needs_no_marker(output_folder):
    folder = output_folder("model", "config.yaml", "downloaded.pth")
    assert only(folder).weights == folder / "downloaded.pth"


@pytest.mark.parametrize("named", ["model_9.pth", "/etc/passwd", "..", "", "\udcff"])
def test_last_checkpoint_that_names_nothing_here_is_an_error(output_folder, named):
    folder = output_folder("model", "config.yaml", "a.pth", "b.pth")
    (folder / "last_checkpoint").write_bytes(named.encode("utf-8", "surrogateescape"))
    assert_error(only(folder), "last_checkpoint")


def test_last_checkpoint_cannot_lead_out_of_the_folder(output_folder):
    outside = output_folder("outside", "secret.pth")
    folder = output_folder("model", "config.yaml", last_checkpoint=str(outside / "secret.pth"))
    assert_error(only(folder), "last_checkpoint")


def test_folder_of_folders_in_order_at_any_depth(output_folder, tmp_path):
    for name in ("zoo/b", "zoo/a", "zoo/deep/er/c"):
        output_folder(name, *FILES)
    output_folder("zoo/notes", "readme.txt")
    sources = find_checkpoints([tmp_path / "zoo"])
    assert [source.name for source in sources] == ["a", "b", "c"]
    assert all(source.error is None for source in sources)


def test_folders_inside_an_output_folder_belong_to_it(output_folder):
    folder = output_folder("model", *FILES)
    output_folder("model/inference", *FILES)
    assert only(folder).weights == folder / "model_final.pth"


def test_broken_folder_does_not_hide_its_neighbours(output_folder, tmp_path):
    output_folder("zoo/good", *FILES)
    output_folder("zoo/no_config", "model_final.pth")
    output_folder("zoo/no_weights", "config.yaml")
    good, no_config, no_weights = find_checkpoints([tmp_path / "zoo"])
    assert good.error is None
    assert_error(no_config, "no config.yaml beside model_final.pth")
    assert_error(no_weights, r"no weights file \(\*\.pth\) beside config.yaml")


def test_missing_path(tmp_path):
    assert_error(only(tmp_path / "nowhere"), "no such file or folder")


def test_empty_folder(output_folder):
    assert_error(only(output_folder("model")), "the folder is empty")


def test_folder_without_a_checkpoint(output_folder):
    assert_error(only(output_folder("model", "readme.txt")), "no checkpoint in this folder")


def test_weights_file_without_a_config(output_folder):
    folder = output_folder("model", "model_final.pth")
    assert_error(only(folder / "model_final.pth"), "no config.yaml beside it")


def test_other_kinds_of_files(output_folder):
    folder = output_folder("model", *FILES, "model.pkl")
    assert_error(only(folder / "model.pkl"), r"not a \*\.pth")


def test_several_weights_files_are_not_guessed_among(output_folder):
    assert_error(only(output_folder("model", "config.yaml", "a.pth", "b.pth")), "several weights")


def test_path_too_long_for_the_file_system(tmp_path):
    assert_error(only(tmp_path / ("x" * 300)), "")


def test_path_that_is_no_file_and_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert_error(only(tmp_path / "pipe"), "")


def test_symbolic_links_below_a_folder_are_not_followed(output_folder, tmp_path):
    output_folder("zoo/a", *FILES)
    outside = output_folder("outside", *FILES)
    (tmp_path / "zoo" / "loop").symlink_to(tmp_path / "zoo")
    (tmp_path / "zoo" / "out").symlink_to(outside)
    assert [source.name for source in find_checkpoints([tmp_path / "zoo"])] == ["a"]


def test_symbolic_link_named_by_the_caller_is_followed(output_folder, tmp_path):
    output_folder("zoo/a", *FILES)
    (tmp_path / "link").symlink_to(tmp_path / "zoo" / "a")
    assert only(tmp_path / "link").error is None


def test_link_to_itself(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert_error(only(tmp_path / "self"), "no such file or folder")


def test_each_checkpoint_comes_once(output_folder, tmp_path, monkeypatch):
    folder = output_folder("zoo/a", *FILES)
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / "zoo", folder, folder / "model_final.pth", "zoo/a", str(folder) + "/"]
    assert len(find_checkpoints(paths)) == 1
    assert len(find_checkpoints([tmp_path / "gone", tmp_path / "gone"])) == 1


def test_sources_keep_the_order_of_the_paths(output_folder):
    paths = [output_folder(name, *FILES) for name in ("c", "a", "b")]
    assert [source.path for source in find_checkpoints(paths)] == paths


def test_names_are_unique_and_safe_as_folder_names(output_folder, tmp_path):
    paths = [
        output_folder("x/model", *FILES),
        output_folder("y/model", *FILES),
        output_folder("y/model_2", *FILES),
        output_folder("z/a b;$(rm) \n|é", *FILES),
        output_folder("z/...", *FILES),
        tmp_path / "gone" / "..",
        tmp_path / ("日" * 80),
    ]
    names = [source.name for source in find_checkpoints(paths)]
    assert len(set(names)) == len(paths)
    assert names[0] == "model"
    for name in names:
        assert re.fullmatch(r"[\w.-]+", name)
        assert name not in (".", "..")
        assert not name.startswith(".")
        assert len(name.encode()) <= 255
