# SPDX-License-Identifier: Apache-2.0
"""Every distinct set of weights is a source, once."""

from __future__ import annotations

import os
import pickle

import torch

from d2defense.checkpoint import discover, find_checkpoints, load_state_dict

STATE = {f"layer{i}.weight": torch.full((3,), float(i)) for i in range(12)}


def save(path, **sets):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": STATE} | sets, path)


def other(factor: float) -> dict:
    return {name: tensor * factor for name, tensor in STATE.items()}


def test_files_of_the_same_bytes_and_config_are_one_source(output_folder):
    folder = output_folder("model", "config.yaml")
    save(folder / "model_final.pth")
    content = (folder / "model_final.pth").read_bytes()
    (folder / "model_best.pth").write_bytes(content)
    (folder / "copy").mkdir()
    (folder / "copy" / "x.pth").write_bytes(content)
    (source,) = find_checkpoints([folder])
    assert source.weights == folder / "model_final.pth"
    assert source.copies == (str(folder / "model_best.pth"), str(folder / "copy" / "x.pth"))


def test_the_same_bytes_under_the_names_of_two_formats_are_read_in_both_ways(output_folder):
    folder = output_folder("model", "config.yaml")
    content = pickle.dumps({"model": {k: v.numpy() for k, v in STATE.items()}})
    for name in ("a.bak", "a.pkl", "b.pkl", "b.pth", "c.pt"):
        (folder / name).write_bytes(content)
    copies = {source.weights.name: source.copies for source in find_checkpoints([folder])}
    assert {name: [os.path.basename(path) for path in paths] for name, paths in copies.items()} == {
        "a.pkl": ["b.pkl"], "b.pth": ["c.pt", "a.bak"],
    }  # fmt: skip
    (folder / "b.pth").unlink()
    (folder / "c.pt").unlink()
    # A name that says nothing is no second model.
    (source,) = find_checkpoints([folder])
    assert (source.weights.name, len(source.copies)) == ("a.pkl", 2)


def test_files_that_differ_where_their_samples_do_not_are_two(output_folder):
    folder = output_folder("model", "config.yaml")
    content = bytearray(os.urandom(1 << 20))
    content[:4] = b"\x80\x02N."
    (folder / "model_final.pth").write_bytes(content)
    content[200_000] ^= 1
    (folder / "model_best.pth").write_bytes(content)
    assert len(find_checkpoints([folder])) == 2


def test_the_same_weights_with_another_config_are_another_detector(output_folder, tmp_path):
    for name in "ab":
        save(output_folder(f"zoo/{name}", "config.yaml") / "model_final.pth")
    sources = find_checkpoints([tmp_path / "zoo"])
    assert [source.name for source in sources] == ["a", "b"]
    assert [source.copies for source in sources] == [(), ()]


def test_a_copy_without_a_config_is_scanned_with_the_one_that_has_one(output_folder, tmp_path):
    save(output_folder("zoo/a", "config.yaml") / "model_final.pth")
    content = (tmp_path / "zoo" / "a" / "model_final.pth").read_bytes()
    lone = output_folder("zoo/downloads") / "f00d"
    lone.write_bytes(content)
    (source,) = find_checkpoints([tmp_path / "zoo"])
    assert source.copies == (str(lone),)
    lone.write_bytes(content + b"\0")
    assert [bool(source.error) for source in find_checkpoints([tmp_path / "zoo"])] == [False, True]


def test_links_and_hard_links_in_a_cache_of_downloads_are_one_source(output_folder, tmp_path):
    blobs = output_folder("cache/blobs", **{"1": "MODEL: {}"})
    save(blobs / "2")
    snapshot = output_folder("cache/snapshots/main")
    (snapshot / "config.yaml").symlink_to(blobs / "1")
    (snapshot / "model_final.pth").symlink_to(blobs / "2")
    os.link(blobs / "2", snapshot / "again.pth")
    (source,) = find_checkpoints([tmp_path / "cache"])
    assert (source.name, source.error) == ("main", None)
    assert set(source.copies) == {str(blobs / "2"), str(snapshot / "again.pth")}


def test_every_set_of_weights_in_a_file_is_a_source(output_folder):
    folder = output_folder("model", "config.yaml")
    save(folder / "model_final.pth", ema_state=other(2), optimizer={"state": {}}, same=STATE)
    sources = find_checkpoints([folder])
    assert [(source.name, source.member) for source in sources] == [
        ("model", None), ("model_ema_state", "ema_state"),
    ]  # fmt: skip
    for source, factor in zip(sources, (1, 2), strict=True):
        state = load_state_dict(source.weights, source.member)
        assert torch.equal(state["layer7.weight"], torch.full((3,), 7.0 * factor))


def test_of_several_sets_of_weights_the_final_ones_are_those_that_detectron2_loads(output_folder):
    folder = output_folder("model", "config.yaml")
    save(folder / "model_final.pth", ema_state=other(2))
    (source,) = discover([folder], only_final=True).sources
    assert source.member is None
    assert source.left_out == (f"{folder / 'model_final.pth'}: ema_state",)
