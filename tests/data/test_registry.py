# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2defense.data import DatasetError, ensure_dataset, load_dataset, register_synth_signs
from d2defense.data.cache import cache_dir


def test_import_registers_the_names_and_writes_nothing(cache):
    for split in ("train", "defender", "val"):
        for suffix in ("", "_256px", "_512px"):
            name = f"synth_signs_{split}{suffix}"
            assert name in DatasetCatalog
            metadata = MetadataCatalog.get(name)
            assert metadata.evaluator_type == "coco"
            assert len(metadata.thing_classes) >= 6
            assert Path(metadata.json_file).is_relative_to(cache)
    assert not cache.exists()
    register_synth_signs()


def test_a_size_of_ones_own_is_registered_and_generated_on_demand(cache):
    name = "synth_signs_defender_64px"
    ensure_dataset(name)
    metadata = MetadataCatalog.get(name)
    shutil.rmtree(cache)  # the catalogue generates by itself, too
    assert len(DatasetCatalog.get(name)) == 200
    document = json.loads(Path(metadata.json_file).read_text())
    assert len(document["images"]) == 200

    records = DatasetCatalog.get(name)
    assert len(records) == 200
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert all(1 <= len(record["annotations"]) <= 6 for record in records)
    assert {a["category_id"] for r in records for a in r["annotations"]} == set(
        range(len(metadata.thing_classes))
    )
    assert load_dataset(name) == records


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synth_sings_val", "synth_signs_val"),
        ("no such thing", "synth_signs_train"),
        ("synth_signs_test", "synth_signs_train"),
        ("synth_signs_val_32px", "64 to 1024"),
        ("synth_signs_val_5000px", "64 to 1024"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(cache, name, message):
    for ask in (ensure_dataset, load_dataset):
        with pytest.raises(DatasetError, match=message) as caught:
            ask(name)
        assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_a_registered_dataset_without_its_file_is_refused(tmp_path):
    register_coco_instances("elsewhere", {}, str(tmp_path / "gone.json"), str(tmp_path))
    try:
        with pytest.raises(DatasetError, match=r"gone\.json does not exist"):
            ensure_dataset("elsewhere")
    finally:
        DatasetCatalog.remove("elsewhere")
        MetadataCatalog.remove("elsewhere")


def test_a_dataset_without_annotations_is_refused():
    DatasetCatalog.register("no_annotations", lambda: [{"file_name": "a.png", "annotations": []}])
    try:
        with pytest.raises(DatasetError, match="no_annotations: the dataset has no annotations"):
            load_dataset("no_annotations")
    finally:
        DatasetCatalog.remove("no_annotations")


def test_a_cache_that_cannot_be_written_to_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("D2DEFENSE_CACHE", str(tmp_path / "file"))
    try:
        with pytest.raises(DatasetError, match="cannot write to the cache folder"):
            ensure_dataset("synth_signs_val_64px")
    finally:
        monkeypatch.undo()
        register_synth_signs()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("D2DEFENSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "d2defense"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "d2defense"
    monkeypatch.setenv("D2DEFENSE_CACHE", str(tmp_path / "named"))
    assert cache_dir() == tmp_path / "named"
