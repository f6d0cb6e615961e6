# SPDX-License-Identifier: Apache-2.0
"""The command that makes the search's null, on searches that are done."""

from __future__ import annotations

import copy
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from programs import as_module, run

import d2defense
from d2defense.checkpoint.specimens import find_specimen, specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import ScanImages, ScanSettings
from d2defense.detection.search import SearchOutcome, load_null, shipped_null

TOOL = Path(__file__).resolve().parents[2] / "tools" / "calibrate_search.py"
SHIPPED = Path(d2defense.__file__).parent / "assets" / "search.json"
NAMES = ("clean_0", "clean_1", "clean_2")


@pytest.fixture
def work(tmp_path):
    """A search of each of three detectors as the command leaves it."""
    folder = tmp_path / "work"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        done = {
            "detector": name,
            "mode": "references",
            "level": "fast",
            "num_images": 50,
            "seed": 0,
            "shown": {"ghost, patch of 40 % on background": {"success": 0.5, "excess": number / 8}},
        }
        (folder / f"{name}-references-fast-0.json").write_text(json.dumps(done))
    return folder


def calibrate(work: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    detectors = [specimens_root() / name for name in NAMES]
    options = ("--search", "fast", "--modes", "references", "--work", work, "--name", "three")
    return run(*detectors, *options, *arguments, script=TOOL)


def test_searches_are_added_to_a_null(work, tmp_path):
    result = calibrate(work, "--add-to", SHIPPED, "--output", tmp_path / "both.json")
    assert result.returncode == 0, result.stderr
    both, before = load_null(tmp_path / "both.json"), shipped_null()
    assert both.name == "three"
    assert both.searches[: len(before.searches)] == before.searches
    assert [each.detector for each in both.searches[len(before.searches) :]] == list(NAMES)
    key = "ghost, patch of 40 % on background"
    values = [each.shown[key].excess for each in both.searches[len(before.searches) :]]
    assert values == [0.0, 0.125, 0.25]
    by = before.of("references", "fast")
    for name, value in zip(NAMES, values, strict=True):
        score = (value - by.baseline(key)) / by.deviation(key)
        assert f"{name}, references: {score:.2f} by {SHIPPED}" in result.stdout

    again = calibrate(work, "--add-to", tmp_path / "both.json", "--output", tmp_path / "no.json")
    assert again.returncode == 2
    assert "both.json: has clean_0 already" in again.stderr
    assert not (tmp_path / "no.json").exists()


def test_a_detector_that_is_none_is_named_before_any_search(work, tmp_path):
    detectors = [specimens_root() / "clean_0", tmp_path / "missing", specimens_root() / "clean_1"]
    options = ("--work", work, "--name", "none", "--output", tmp_path / "no.json")
    result = run(*detectors, *options, "--search", "fast", script=TOOL)
    assert result.returncode == 2
    assert "missing" in result.stderr
    assert "unforeseen" not in result.stderr


def test_null_of_other_images_is_not_added_to(work, tmp_path):
    content = json.loads(SHIPPED.read_text())
    content["dataset"] = {"name": "others", "fingerprint": "0" * 64}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    result = calibrate(work, "--add-to", other, "--output", tmp_path / "no.json")
    assert result.returncode == 2
    assert "made on other images (others)" in result.stderr


@pytest.fixture(scope="module")
def tool():
    """The command as a module."""
    return as_module(TOOL)


def test_a_twin_is_made_as_a_scan_makes_it(tool, monkeypatch, signs_cache):
    """Of the images that the search works on and those that the scan does not draw."""
    made, searched = [], []

    def fine_tuned_twin(model, images, settings, on_step):
        made.append((model, len(images), settings.steps))
        return copy.deepcopy(model)

    def search_detector(model, references, tuning, held_out, *others, **options):
        searched.append((model, references, len(tuning), len(held_out), others[3]))
        return SearchOutcome()

    monkeypatch.setattr(tool, "fine_tuned_twin", fine_tuned_twin)
    monkeypatch.setattr(tool, "search_detector", search_detector)
    settings = ScanSettings(max_images=24)
    images = ScanImages.load(DatasetSource("synth_signs_defender"), settings)
    done = tool.search_clean(find_specimen("clean_0"), [], images, settings, "fast", "twin", 0)
    ((suspect, count, steps),) = made
    ((model, references, tuning, held_out, mode),) = searched
    assert model is suspect
    assert list(references) == ["twin"]
    assert (tuning, held_out, mode, done.mode) == (12, 12, "twin", "twin")
    assert count == min(200, 12 + len(images.further))
    assert steps == settings.search.twin_steps
    with pytest.raises(ValueError, match="clean_0: its twin: it needs 40 images"):
        few = replace(images, further=())
        tool.search_clean(find_specimen("clean_0"), [], few, settings, "fast", "twin", 0)
