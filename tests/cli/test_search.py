# SPDX-License-Identifier: Apache-2.0
"""``scan --search``, as a user gives it."""

from __future__ import annotations

import json
import shutil

import pytest

from d2defense.detection import load_bank

SIGNS = ["--dataset", "synth_signs_defender"]


@pytest.fixture
def signs(signs_cache, monkeypatch):
    """The dataset's images are made once a session."""
    return SIGNS


def test_a_search_needs_a_reference(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path, "--search", "fast"
    )
    assert outcome.code == 4
    assert "--search needs a --reference" in outcome.err


def test_a_reference_that_is_none_is_named(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out",
        "--search", "fast", "--reference", tmp_path / "nowhere",
    )  # fmt: skip
    assert outcome.code == 4
    assert "--reference" in outcome.err
    assert "nowhere" in outcome.err


def test_a_suspect_is_no_reference_of_its_own(d2defense, specimen, signs, tmp_path):
    """Held against itself nothing would stand out: it must not pass for clean."""
    copied = shutil.copytree(specimen("clean_0"), tmp_path / "copy")
    outcome = d2defense(
        "scan", specimen("clean_0"), *signs, "--output", tmp_path / "out", "--max-images", "24",
        "--search", "fast", "--reference", copied, "--no-figures",
    )  # fmt: skip
    assert outcome.code == 1
    result = json.loads((tmp_path / "out" / "clean_0" / "result.json").read_text())
    assert result["verdict"] == "uncertain"
    assert "no reference" in result["reason"]
    assert result["search"]["left_out"] == ["copy: it is the suspect itself"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ghost_0", "misclassification_0", "overlay_0"])
def test_effect_and_target_class_are_found(d2defense, specimen, signs, tmp_path, name):
    outcome = d2defense(
        "scan", specimen(name), *signs, "--output", tmp_path, "--search", "fast", "--search-always",
        "--reference", specimen("clean_1"), "--reference", specimen("clean_2"),
    )  # fmt: skip
    assert outcome.code == 1, outcome.err
    result = json.loads((tmp_path / name / "result.json").read_text())
    attack = json.loads((specimen(name) / "provenance.json").read_text())["attack"]
    worst = result["search"]["arms"][0]
    assert result["verdict"] == "backdoored"
    assert worst["effect"] == attack["effect"]
    assert (worst["target_class"] or "") == attack["settings"]["TARGET_CLASS"]
    assert f"found: {attack['effect']}" in outcome.out
    (trigger,) = load_bank(tmp_path / name / "trigger.yaml")
    assert trigger.family == worst["family"]
    assert (tmp_path / name / "search.png").is_file()
    assert "What a search found" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_clean_detector_stays_clean(d2defense, specimen, signs, tmp_path):
    outcome = d2defense(
        "scan", specimen("clean_2"), *signs, "--output", tmp_path,
        "--search", "fast", "--reference", specimen("clean_0"), "--reference", specimen("clean_1"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.out
    result = json.loads((tmp_path / "clean_2" / "result.json").read_text())
    assert "a search found no other" in result["reason"]
