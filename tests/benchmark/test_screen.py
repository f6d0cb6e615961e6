# SPDX-License-Identifier: Apache-2.0
"""The task of screening: the screening methods as they are, on detectors with known attacks."""

from __future__ import annotations

import pytest

from d2defense.benchmark.running import run_benchmark
from d2defense.benchmark.tasks.base import TaskOptions
from d2defense.checkpoint.specimens import specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import ScanImages, ScanSettings
from d2defense.study.results import ResultStore


@pytest.fixture
def options(tmp_path, make_coco_dataset, sign_scenes) -> TaskOptions:
    source = make_coco_dataset(sign_scenes(20))
    images = ScanImages.load(source, ScanSettings(max_images=20))
    return TaskOptions(images, source, DatasetSource(source.name), (), None, 0, "cpu", tmp_path)


def measured(options, tmp_path, pattern):
    store = ResultStore(tmp_path / "results")
    summary = run_benchmark(
        "screen", ["inconsistency"], [specimens_root()], store, options, pattern
    )
    assert summary.failed == ()
    return {row.metric: row.value for row in store.read()}


def test_a_white_patch_on_its_detector_is_told_from_clean_images(options, tmp_path):
    values = measured(options, tmp_path, "backdoored_1")
    assert set(values) == {"false_alarms", "auc_of_images", "triggers_found"}
    # The images are those it was fitted on, so that the rate holds exactly.
    assert values["false_alarms"] <= 0.05
    assert values["auc_of_images"] > 0.9
    assert values["triggers_found"] > 0.5


def test_of_a_clean_detector_there_are_false_alarms_alone(options, tmp_path):
    assert set(measured(options, tmp_path, "clean_1")) == {"false_alarms"}


def test_too_few_images_are_a_failure_and_no_measurement(options, tmp_path):
    from dataclasses import replace

    few = replace(options.images, records=options.images.records[:10])
    store = ResultStore(tmp_path / "results")
    summary = run_benchmark(
        "screen",
        ["inconsistency"],
        [specimens_root()],
        store,
        replace(options, images=few),
        "clean_1",
    )
    assert summary.measured == 0
    assert "10 clean images cannot hold a false alarm rate" in summary.failed[0]
    assert store.cells() == set()
