# SPDX-License-Identifier: Apache-2.0
"""The driver of a scan: odd checkpoints, files that change, shares of the machine."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch

from d2defense.checkpoint import load_state_dict, save_state_dict
from d2defense.detection import ScanSettings, load_calibration, select_triggers
from d2defense.detection.search import SearchOutcome
from d2defense.isolation import Limits
from d2defense.report.results import load_results
from d2defense.workflows.scan import RunOptions, checkpoint, executors, find_sources, scan
from d2defense.workflows.scan.options import NONE
from d2defense.workflows.scan.searching import Searched

SETTINGS = ScanSettings(select_triggers(["white"]), bootstrap_samples=20)
WITHOUT_SEARCH = SETTINGS.without_search()


@pytest.fixture
def run(make_coco_dataset, sign_scenes, tmp_path):
    """A function that scans a folder in this process, without figures, and returns the results."""
    dataset = make_coco_dataset(sign_scenes(4))

    def run(folder, settings=WITHOUT_SEARCH, **options):
        chosen = RunOptions(isolation=NONE, figures=False, **options)
        output = tmp_path / "out"
        found = find_sources([folder])
        results = scan(found, dataset, output, settings, load_calibration(), "cpu", chosen)
        assert results == load_results(output)
        return results

    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_scanned_and_reported(specimen, run, tmp_path, value):
    folder = shutil.copytree(specimen("clean_0"), tmp_path / "odd")
    state = load_state_dict(folder / "model_final.pth")
    names = [name for name in state if "box_predictor" in name]
    for name in names:
        state[name] = torch.full_like(state[name], value)
    save_state_dict(folder / "model_final.pth", state)
    (result,) = run(folder)
    # What sees no objects cannot be called clean.
    assert result["verdict"] == "uncertain"
    (warning,) = result["warnings"]
    assert warning.startswith(f"{len(names)} tensors hold NaN or infinity, first ")
    assert any(name in warning for name in names)


def test_files_that_change_during_the_scan_give_no_verdict(specimen, run, tmp_path, monkeypatch):
    folder = shutil.copytree(specimen("clean_0"), tmp_path / "moving")
    original = executors.run_task

    def replace_and_run(task, progress=None):
        scanned = original(task, progress)
        shutil.copy(specimen("backdoored_0") / "model_final.pth", task.weights)
        return scanned

    monkeypatch.setattr(executors, "run_task", replace_and_run)
    (result,) = run(folder)
    assert result["verdict"] == "error"
    assert "changed while they were scanned" in result["error"]


@pytest.mark.parametrize(
    ("label", "seconds"), [("clean", math.inf), ("uncertain", math.inf), ("uncertain", 0.0)]
)
def test_what_the_bank_doubts_is_held_against_the_references_of_the_search(
    specimen, run, monkeypatch, label, seconds
):
    inspect = checkpoint.inspect_detector

    class Doubt:
        def __init__(self, verdict):
            self.verdict = verdict

        def triggers(self):
            assert seconds > 0
            return ("white",)

        def against(self, references):
            (survey,) = references
            assert list(survey.triggered) == ["white"]
            assert survey.num_images == 4
            return None if label == "uncertain" else self.verdict

    def doubtful(*args, **options):
        inspection = inspect(*args, **options)
        verdict = replace(inspection.verdict, label="clean", reason="nothing")
        doubted = replace(verdict, label="uncertain", reason="one class")
        return replace(inspection, verdict=doubted, victim_class="stop", doubt=Doubt(verdict))

    def search(task, subject, progress, seconds):
        return Searched(SearchOutcome(), None, {}, b"", {"other": subject.model})

    monkeypatch.setattr(checkpoint, "inspect_detector", doubtful)
    monkeypatch.setattr(checkpoint, "search_checkpoint", search)
    monkeypatch.setattr(checkpoint, "_seconds_left", lambda task, start: seconds)
    (result,) = run(specimen("clean_0"), SETTINGS)
    assert result["verdict"] == result["bank"]["verdict"] == label
    assert result["bank"]["references"] == ([] if label == "uncertain" else ["other"])
    assert result["victim_class"] == ("stop" if label == "uncertain" else None)
    assert ("one class" if label == "uncertain" else "lose, too; what a") in result["reason"]
    assert ["--time-limit" in each for each in result["warnings"]] == [True] * (seconds == 0)


def test_workers_share_gpus_in_turn_and_threads_equally():
    task = executors.ScanTask("a", *[None] * 6)

    def placed(threads=8, **options):
        chosen = RunOptions(**options)
        return [executors.place(task, slot, chosen, cpus=8, threads=threads) for slot in range(3)]

    assert [t.device for t in placed(workers=3, num_gpus=2)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [(t.device, t.threads) for t in placed(workers=3)] == [(None, 2)] * 3
    assert {t.threads for t in placed(workers=2, threads=3)} == {3}
    assert {t.threads for t in placed(workers=16)} == {1}
    # One that was told to take one thread has no more for what it starts.
    assert {t.threads for t in placed()} == {8}
    assert {t.threads for t in placed(threads=1)} == {1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": 0}, "workers 0"),
        ({"num_gpus": -1}, "num_gpus -1"),
        ({"isolation": "strong"}, "isolation 'strong'"),
        ({"isolation": "none", "workers": 2}, "several workers"),
    ],
)
def test_contradictions_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        RunOptions(**options)


def test_limits_have_defaults():
    assert RunOptions().limits == Limits(8 << 30, 3600.0)
