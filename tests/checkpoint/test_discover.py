# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re

import pytest
import torch

from d2defense.checkpoint import CheckpointError, discover, find_checkpoints, format_sources

FILES = ("config.yaml", "model_final.pth")


def only(path):
    (source,) = find_checkpoints([path])
    return source


def only_final(path):
    (source,) = find_checkpoints([path], only_final=True)
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


def test_all_weights_of_an_output_folder_are_found(output_folder):
    folder = output_folder(
        "model", *FILES, "model_0000249.pth", "model_best.pth", last_checkpoint="model_0000249.pth"
    )
    assert [(source.name, source.weights.name) for source in find_checkpoints([folder])] == [
        ("model", "model_final.pth"),
        ("model_model_0000249.pth", "model_0000249.pth"),
        ("model_model_best.pth", "model_best.pth"),
    ]


def test_final_weights_alone_stand_for_an_output_folder_where_asked_for(output_folder):
    folder = output_folder(
        "model", *FILES, "model_0000249.pth", last_checkpoint="model_0000249.pth"
    )
    output_folder("model/inference", *FILES)
    found = discover([folder], only_final=True)
    (source,) = found.sources
    assert (source.name, source.weights) == ("model", folder / "model_final.pth")
    assert source.left_out == (str(folder / "model_0000249.pth"),)
    assert {path for path, _ in found.left_out} == {
        folder / "model_0000249.pth", folder / "inference" / "model_final.pth",
    }  # fmt: skip


def test_unfinished_run_stands_for_its_last_checkpoint(output_folder):
    folder = output_folder(
        "model", "config.yaml", "model_0000249.pth", "model_0000499.pth",
        last_checkpoint="model_0000249.pth\n",
    )  # fmt: skip
    first, second = find_checkpoints([folder])
    assert (first.name, first.weights) == ("model", folder / "model_0000249.pth")
    assert second.weights == folder / "model_0000499.pth"
    assert only_final(folder).weights == folder / "model_0000249.pth"


def test_single_weights_file_needs_no_marker(output_folder):
    folder = output_folder("model", "config.yaml", "downloaded.pth")
    assert only(folder).weights == folder / "downloaded.pth"


@pytest.mark.parametrize("named", ["model_9.pth", "sub/model_9.pth", "", ".", "a\x1b.pth"])
def test_last_checkpoint_that_names_nothing_here_is_mentioned(output_folder, named):
    folder = output_folder("model", "config.yaml", "a.pth", "b.pth", last_checkpoint=named)
    found = discover([folder])
    assert [source.weights.name for source in found.sources] == ["a.pth", "b.pth"]
    (note,) = found.left_out
    assert note.path == folder / "last_checkpoint"
    assert "which is not here" in note.reason
    assert note.reason.isprintable()
    error, *_ = find_checkpoints([folder], only_final=True)
    assert_error(error, "last_checkpoint: it names .*which is not here")


@pytest.mark.parametrize(
    "named", ["/etc/passwd", "..", "../other.pth", "{folder}/../x.pth", "https://example.org/x.pth"]
)
def test_last_checkpoint_that_leads_out_is_an_error_beside_what_is_here(output_folder, named):
    folder = output_folder("model", *FILES)
    (folder / "last_checkpoint").write_text(named.format(folder=folder))
    error, scanned = find_checkpoints([folder])
    assert scanned.weights == folder / "model_final.pth"
    assert_error(error, "it names weights outside of .*, which were not scanned")
    assert error.path == folder / "last_checkpoint"


def test_last_checkpoint_through_a_link_that_leads_out_is_not_read(output_folder, tmp_path):
    (tmp_path / "secret").write_text("password")
    folder = output_folder("model", *FILES)
    (folder / "last_checkpoint").symlink_to(tmp_path / "secret")
    found = discover([folder])
    assert "password" not in format_sources(*found)
    assert_error(found.sources[0], "it is a link that leads out of ")
    assert found.sources[1].weights == folder / "model_final.pth"


def test_last_checkpoint_may_name_a_folder_too(output_folder):
    folder = output_folder("model", "config.yaml", last_checkpoint="run/model_0000249.pth")
    output_folder("model/run", "model_0000249.pth", "model_0000499.pth")
    output_folder("model/old", "model_0000249.pth")
    sources = find_checkpoints([folder])
    assert [source.name for source in sources] == [
        "model", "model_old_model_0000249.pth", "model_run_model_0000499.pth",
    ]  # fmt: skip
    assert sources[0].weights == folder / "run" / "model_0000249.pth"
    assert {source.config for source in sources} == {folder / "config.yaml"}
    assert only_final(folder).weights == folder / "run" / "model_0000249.pth"


@pytest.mark.parametrize("base", ["", "./", "model/", "{root}/model/"])
def test_weights_of_the_config_in_a_folder_below(output_folder, tmp_path, base):
    named = f"{base.format(root=tmp_path)}weights/best.pth?matching_heuristics=True"
    config = f"MODEL: {{WEIGHTS: '{named}'}}"
    folder = output_folder("model", "a.pth", "b.pth", **{"config.yaml": config})
    output_folder("model/weights", "best.pth")
    sources = find_checkpoints([tmp_path])
    assert [source.name for source in sources] == ["model", "model_a.pth", "model_b.pth"]
    assert sources[0].weights == folder / "weights" / "best.pth"
    assert sources[0].warnings == ()


@pytest.mark.parametrize("how", ["config", "last_checkpoint"])
def test_weights_of_another_folder_of_the_tree_are_scanned_with_the_config_that_names_them(
    output_folder, tmp_path, how
):
    named = "../shared/x.pth"
    files = {"config.yaml": f"MODEL: {{WEIGHTS: {named}}}", "last_checkpoint": named}
    if how == "config":
        del files["last_checkpoint"]
    else:
        files["config.yaml"] = "MODEL: {}"
    folder = output_folder("zoo/model", "model_final.pth", **files)
    output_folder("zoo/shared", "config.yaml", "x.pth")
    sources = find_checkpoints([tmp_path / "zoo"])
    assert [(source.name, source.config.parent.name) for source in sources] == [
        ("model", "model"), ("model_shared_x.pth", "model"), ("shared", "shared"),
    ]  # fmt: skip
    assert sources[1].weights == sources[2].weights == tmp_path / "zoo" / "shared" / "x.pth"
    assert only_final(folder).weights == folder / "model_final.pth"


@pytest.mark.parametrize(
    "named", ["https://example.org/x.pth", "/home/alice/x.pth", "../x.pth", "gone.pth"]
)
def test_weights_of_the_config_that_are_not_here_are_a_warning(output_folder, named):
    content = f"MODEL: {{WEIGHTS: '{named}'}}"
    folder = output_folder("model", "model_final.pth", **{"config.yaml": content})
    for path in (folder, folder / "model_final.pth"):
        (warning,) = only(path).warnings
        assert f"MODEL.WEIGHTS is '{named}'" in warning
        assert "were not scanned" in warning


@pytest.mark.parametrize("named", ["", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"])
def test_weights_that_trainings_start_from_are_no_warning(output_folder, named):
    content = f"MODEL: {{WEIGHTS: '{named}'}}"
    folder = output_folder("model", "model_final.pth", **{"config.yaml": content})
    assert only(folder).warnings == ()


def test_folder_of_folders_in_order_at_any_depth(output_folder, tmp_path):
    for name in ("zoo/b", "zoo/a", "zoo/deep/er/c"):
        output_folder(name, *FILES)
    output_folder("zoo/notes", "readme.txt")
    sources = find_checkpoints([tmp_path / "zoo"])
    assert [source.name for source in sources] == ["a", "b", "c"]
    assert all(source.error is None for source in sources)


def test_a_checkpoint_below_a_checkpoint_is_found(output_folder):
    folder = output_folder("model", *FILES)
    output_folder("model/best", *FILES)
    output_folder("model/best/ema", "model_final.pth")
    sources = find_checkpoints([folder])
    assert [(source.name, source.config) for source in sources] == [
        ("model", folder / "config.yaml"),
        ("best", folder / "best" / "config.yaml"),
        ("best_ema_model_final.pth", folder / "best" / "config.yaml"),
    ]


def test_broken_folder_does_not_hide_its_neighbours(output_folder, tmp_path):
    output_folder("zoo/good", *FILES)
    output_folder("zoo/no_config", "model_final.pth")
    output_folder("zoo/no_weights", "config.yaml")
    good, no_config, no_weights = find_checkpoints([tmp_path / "zoo"])
    assert good.error is None
    assert_error(no_config, "no config.yaml beside model_final.pth")
    assert_error(no_weights, r"no weights file \(\*\.pth, .*\) beside config.yaml")


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
    folder = output_folder("model", *FILES, "model.h5")
    assert_error(only(folder / "model.h5"), "not a weights file")


def test_several_weights_files_are_checkpoints_each(output_folder):
    folder = output_folder("model", "config.yaml", "a.pth", "b.pkl", "c.safetensors", "d.txt")
    sources = find_checkpoints([folder])
    assert [source.path.name for source in sources] == ["a.pth", "b.pkl", "c.safetensors"]
    assert [source.format for source in sources] == ["pth", "pkl", "safetensors"]
    assert {source.config for source in sources} == {folder / "config.yaml"}


def test_newest_checkpoint_of_a_run_without_a_marker(output_folder):
    names = [f"model_{number}.pth" for number in ("0000999", "0010000", "0002000")]
    folder = output_folder("model", "config.yaml", *names)
    torch.save([{"instances": []}], folder / "instances_predictions.pth")
    first, *others = find_checkpoints([folder])
    assert (first.name, first.weights) == ("model", folder / "model_0010000.pth")
    assert [source.weights.name for source in others] == names[::2]
    assert only_final(folder).weights == folder / "model_0010000.pth"


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_final_weights_of_each_format(output_folder, suffix):
    folder = output_folder("model", "config.yaml", f"model_final{suffix}", "other.pth")
    first, other = find_checkpoints([folder])
    assert (first.name, first.weights) == ("model", folder / f"model_final{suffix}")
    assert (other.name, other.weights) == ("model_other.pth", folder / "other.pth")
    assert only_final(folder).weights == folder / f"model_final{suffix}"


def test_config_file_where_none_lies_beside(output_folder, tmp_path):
    with_config = output_folder("zoo/a", *FILES)
    without = output_folder("zoo/b", "x.pkl", "y.pth")
    fallback = tmp_path / "mine.yaml"
    sources = find_checkpoints([tmp_path / "zoo"], config_file=fallback)
    assert [(source.weights, source.config) for source in sources] == [
        (with_config / "model_final.pth", with_config / "config.yaml"),
        (without / "x.pkl", fallback),
        (without / "y.pth", fallback),
    ]


def test_config_of_the_model_zoo(output_folder):
    folder = output_folder("downloads", "model_final_f10217.pkl")
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x"
    for spelling in (name, f"{name}.yaml"):
        (source,) = find_checkpoints([folder / "model_final_f10217.pkl"], model_zoo=spelling)
        assert str(source.config).endswith(f"model_zoo/configs/{name}.yaml")
        assert source.config.is_file()


@pytest.mark.parametrize(
    "name", ["", "..", "../../model_zoo.py", "/etc/passwd", "COCO-Detection/../Base-RCNN-FPN.yaml"]
)
def test_only_names_of_the_zoo_are_looked_up_there(tmp_path, name):
    with pytest.raises(ValueError, match="is not in Detectron2's model zoo"):
        find_checkpoints([tmp_path], model_zoo=name)


def test_config_file_and_zoo_name_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        find_checkpoints([tmp_path], tmp_path / "a.yaml", "Base-RCNN-FPN.yaml")


def test_other_files_in_a_folder_are_no_errors(output_folder, tmp_path):
    folder = output_folder("zoo/a", "metrics.json", "events.out.tfevents.1", "model.py", "clip.ts")
    torch.save({"optimizer": {"state": {}}}, folder / "optimizer.pth")
    torch.save([{"instances": []}], folder / "instances_predictions.pth")
    output_folder("zoo/other_program", **{"config.yaml": "log_level: info"})
    output_folder("zoo/b", *FILES)
    assert [source.name for source in find_checkpoints([tmp_path / "zoo"])] == ["b"]


def test_models_that_cannot_be_scanned_are_not_passed_over(output_folder, tmp_path):
    folder = output_folder("zoo")
    (folder / "model.ts").write_bytes(b"PK\x03\x04...")
    (folder / "damaged.pth").write_bytes(b"?")
    (folder / "empty.pkl").write_bytes(b"")
    sources = find_checkpoints([folder])
    assert [source.path.name for source in sources] == ["damaged.pth", "empty.pkl", "model.ts"]
    assert_error(sources[2], "TorchScript archive")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("model.ts", "TorchScript"), ("model.onnx", "ONNX"), ("train.py", "never executed")],
)
def test_other_formats_are_refused_by_name(output_folder, name, reason):
    folder = output_folder("model", name)
    assert_error(only(folder / name), reason)


def test_lazy_config_is_refused_by_name(output_folder):
    folder = output_folder("model", "model_final.pth", "config.py")
    assert_error(only(folder), "config.py is a LazyConfig, which would have to be executed")


@pytest.mark.parametrize("linked", FILES)
def test_links_that_lead_out_of_the_named_folder(output_folder, tmp_path, linked):
    outside = output_folder("outside", *FILES)
    folder = output_folder("zoo/model", *(name for name in FILES if name != linked))
    (folder / linked).symlink_to(outside / linked)
    for named in (folder, folder.parent):
        assert_error(only(named), f"{linked} is a link that leads out of {named}")


def test_links_inside_the_named_folder_are_followed(output_folder, tmp_path):
    # As in a download cache that keeps every file once.
    blobs = output_folder("cache/blobs", "1", "2")
    folder = output_folder("cache/snapshot")
    (folder / "config.yaml").symlink_to(blobs / "1")
    (folder / "model_final.pth").symlink_to(blobs / "2")
    assert only(tmp_path / "cache").error is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing"])
@pytest.mark.parametrize("name", FILES)
def test_names_of_a_checkpoint_that_are_no_files(output_folder, kind, name):
    folder = output_folder("model", *(other for other in FILES if other != name))
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(folder / "gone")
    reason = "is a link to nothing" if kind == "nothing" else "is not a regular file"
    assert_error(only(folder), f"{name} {reason}")


def test_names_of_files_cannot_act_on_a_terminal(output_folder, tmp_path):
    source = only(tmp_path / "a\x1b[31m\nb\u202ec\udcff")
    assert str(source.error).isprintable()
    assert "\\x1b[31m\\nb\\u202ec\\udcff: no such file" in str(source.error)
    long = output_folder("/".join(["x" * 200] * 3))
    assert len(str(only(long).error)) < 500


def test_listing(output_folder, tmp_path):
    output_folder("zoo/a", *FILES)
    output_folder("zoo/b\x1b", "model_final.pth")
    text = format_sources(find_checkpoints([tmp_path / "zoo"]))
    head, first, second = text.splitlines()
    assert head.split() == ["name", "format", "weights", "config"]
    assert first.split()[:2] == ["a", "pth"]
    assert first.endswith("zoo/a/config.yaml")
    assert "error" in second
    assert "b\\x1b: no config.yaml beside model_final.pth" in second


def test_path_too_long_for_the_file_system(tmp_path):
    assert "name too long" in str(only(tmp_path / ("x" * 300)).error)


def test_path_that_is_no_file_and_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert_error(only(tmp_path / "pipe"), "a pipe, a socket or a device")


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
    assert_error(only(tmp_path / "self"), "Too many levels of symbolic links")


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
