# SPDX-License-Identifier: Apache-2.0
"""The task of repairs: the removal methods as they are, on detectors whose attack is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d2defense.benchmark.tasks.repair import Repairing
from d2defense.benchmark.zoo.index import find_detectors
from d2defense.checkpoint.specimens import specimens_root
from d2defense.registry import REMOVAL_REGISTRY


def by_name(name: str):
    (found,) = [each for each in find_detectors(specimens_root()) if each.name == name]
    return found


def test_attacks_that_took_are_removed_and_clean_ones_repaired_for_nothing():
    task, ghost = Repairing(), by_name("ghost_0")
    assert task.applies(ghost)
    assert task.applies(by_name("clean_0"))
    assert not task.applies(replace(ghost, facts={**ghost.facts, "took": False}))
    assert not task.applies(replace(ghost, facts={**ghost.facts, "truth": None}))


@pytest.fixture
def run(tmp_path, make_coco_dataset, sign_scenes):
    """Runs a method with two steps on a specimen, and returns the values by metric."""
    from d2defense.benchmark.running import run_benchmark
    from d2defense.benchmark.tasks.base import TaskOptions
    from d2defense.checkpoint import find_checkpoints
    from d2defense.data import DatasetSource
    from d2defense.detection import ScanImages, ScanSettings
    from d2defense.study.results import ResultStore

    small = make_coco_dataset(sign_scenes(8))
    store = ResultStore(tmp_path / "results")
    references = find_checkpoints([specimens_root() / "clean_1"], only_final=True)

    def measured(only: str, images: int, method: str = "vanilla", dataset=None, **changes):
        source = dataset or small
        options = TaskOptions(
            ScanImages.load(source, ScanSettings(max_images=images)),
            source,
            DatasetSource(source.name),
            tuple(references),
            None,
            0,
            "cpu",
            tmp_path / "work",
            overrides=("REMOVAL.SOLVER.MAX_ITER", "2"),
            **changes,
        )
        before = len(store.read())
        summary = run_benchmark("repair", [method], [specimens_root()], store, options, only)
        assert summary.failed == ()
        return {row.metric: row for row in store.read()[before:]}

    return measured


@pytest.mark.slow
def test_a_repair_is_measured_before_and_after_and_later(run):
    rows = run("backdoored_1", 8, later_steps=1)
    expected = {"control_asr", "ap_drop"}
    for name in ("asr", "tdr", "ap"):
        expected |= {name, f"{name}_before", f"{name}_later"}
    assert set(rows) == expected
    assert rows["asr_before"].value > 0.4
    assert rows["control_asr"].value < 0.2
    drop = rows["ap_before"].value - rows["ap"].value
    assert rows["ap_drop"].value == pytest.approx(drop)
    assert all(row.needs == "8 images to train on" for row in rows.values())
    # Nothing of it is measured again, with other images or other labels all is.
    assert run("backdoored_1", 8, later_steps=1) == {}
    fewer = run("backdoored_1", 3, has_labels=False, test_images=4)
    assert fewer["asr"].needs == "3 images to train on, without labels"
    assert fewer["asr"].images == 3
    assert fewer["asr"].conditions["test_images"] == 4
    assert "asr_later" not in fewer


@pytest.mark.slow
def test_of_a_clean_detector_the_cost_alone_is_measured(run):
    assert set(run("clean_1", 8, test_images=4)) == {"ap", "ap_before", "ap_drop"}


def test_the_product_is_a_method_beside_the_removal_methods():
    methods = Repairing().methods
    assert set(methods.choices()) == {*REMOVAL_REGISTRY.choices(), "repair"}
    assert methods.choices()["repair"].startswith("d2defense's repair")
    with pytest.raises(ValueError, match=r"no removal method 'none'; there are .*repair"):
        methods.get("none")


def test_the_product_goes_by_what_a_scan_finds(run, monkeypatch):
    """The bank is enough to tell: what a search finds is told as well (``test_repair.py`` of the
    workflows), and takes minutes."""
    from d2defense.benchmark.tasks import repair
    from d2defense.data import DatasetSource

    monkeypatch.setattr(repair, "SEARCH_LEVEL", "off")
    defender = DatasetSource("synth_signs_defender")
    rows = run("backdoored_0", 60, method="repair", dataset=defender, test_images=4)
    assert rows["asr_before"].value > 0.5
    assert rows["asr"].settings["method"] == "known_trigger"
    assert rows["asr"].settings["told"] == []
