# SPDX-License-Identifier: Apache-2.0
"""The task of repairs: the removal methods as they are, on detectors whose attack is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d2defense.benchmark.tasks.repair import Repairing
from d2defense.benchmark.zoo.index import find_detectors
from d2defense.checkpoint.specimens import specimens_root


def by_name(name: str):
    (found,) = [each for each in find_detectors(specimens_root()) if each.name == name]
    return found


def test_only_attacks_that_took_are_removed():
    task, ghost = Repairing(), by_name("ghost_0")
    assert task.applies(ghost)
    assert not task.applies(by_name("clean_0"))
    assert not task.applies(replace(ghost, facts={**ghost.facts, "took": False}))


@pytest.mark.slow
def test_a_repair_is_measured_before_and_after(
    tmp_path, make_coco_dataset, sign_scenes, monkeypatch
):
    from d2defense.benchmark.results import ResultStore
    from d2defense.benchmark.running import run_benchmark
    from d2defense.benchmark.tasks import repair
    from d2defense.benchmark.tasks.base import TaskOptions
    from d2defense.data import DatasetSource
    from d2defense.detection import ScanImages, ScanSettings

    short = repair.FineTuningOptions(method="vanilla", overrides=["REMOVAL.SOLVER.MAX_ITER", "2"])
    monkeypatch.setattr(repair, "FineTuningOptions", lambda **_: short)
    source = make_coco_dataset(sign_scenes(8))
    images = ScanImages.load(source, ScanSettings(max_images=8))
    options = TaskOptions(
        images, source, DatasetSource(source.name), (), None, 0, "cpu", tmp_path / "work"
    )
    store = ResultStore(tmp_path / "results")
    summary = run_benchmark(
        "repair", ["vanilla"], [specimens_root()], store, options, "backdoored_1"
    )
    assert summary.failed == ()
    values = {row.metric: row.value for row in store.read()}
    assert set(values) == {"asr", "tdr", "ap", "asr_before", "tdr_before", "ap_before"}
    assert values["asr_before"] > 0.4
    assert all(row.needs == "8 images to train on" for row in store.read())
