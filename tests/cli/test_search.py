# SPDX-License-Identifier: Apache-2.0
"""``scan --search``, as a user gives it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from d2defense.checkpoint import build_detector, find_checkpoints
from d2defense.detection import load_bank
from d2defense.detection.search import (
    CleanSearch,
    SearchNull,
    SearchOutcome,
    Shown,
    levels,
    shipped_null,
)
from d2defense.detection.search.race import RaceSettings
from d2defense.detection.twin import TwinError

SIGNS = ["--dataset", "synth_signs_defender"]


@pytest.fixture
def signs(signs_cache, monkeypatch):
    """The dataset's images are made once a session."""
    return SIGNS


@pytest.fixture
def brief(monkeypatch):
    """A search of a few steps, which finds nothing; only here, not in other processes."""
    race = RaceSettings(
        scout_steps=1, targets=1, heat_steps=1, finalists=1, steps=1, families=("patch",)
    )
    monkeypatch.setattr(levels, "LEVELS", {**levels.LEVELS, "fast": race})


def result_of(folder):
    return json.loads((folder / "clean_0" / "result.json").read_text())


def test_what_cannot_be_searched_is_not_called_clean(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path, "--search", "fast"
    )
    assert outcome.code == 1
    result = result_of(tmp_path)
    assert result["verdict"] == "uncertain"
    assert "could not be searched further: a search needs 20 images" in result["reason"]
    assert "a search needs 20 images" in outcome.out


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_without_a_reference_a_twin_serves(
    d2defense, specimen, make_coco_dataset, sign_scenes, tmp_path
):
    data = make_coco_dataset(sign_scenes(44))
    asked = [
        "scan", specimen("clean_0"), "--dataset-json", data.json_file,
        "--image-root", data.image_root, "--output", tmp_path / "out", "--search", "fast",
        "--max-images", "20", "--triggers", "white", "--isolation", "none", "--no-figures",
    ]  # fmt: skip
    outcome = d2defense(*asked, "--opts", "DEFENSE.TWIN_STEPS", "4")
    found = result_of(tmp_path / "out")
    assert found["search"]["mode"] == "twin"
    assert found["search"]["references"] == ["twin"]
    assert "fine-tuning its twin: 4 steps on 34 images" in outcome.err
    assert "its twin will take about" in outcome.err
    # Patches alone, of a step each, would not show what is there.
    assert found["verdict"] in ("clean", "uncertain")
    suspect, twin = (
        build_detector(each.weights, each.config)[0].state_dict()
        for path in (specimen("clean_0"), tmp_path / "out" / "clean_0" / "twin")
        for each in find_checkpoints([path], only_final=True)
    )
    assert suspect.keys() == twin.keys()
    assert any(not torch.equal(suspect[name], twin[name]) for name in suspect)


@pytest.mark.usefixtures("brief")
def test_a_twin_that_cannot_be_made_leaves_no_clean_verdict(
    d2defense, specimen, make_coco_dataset, sign_scenes, tmp_path, monkeypatch
):
    def diverge(*arguments):
        raise TwinError("its loss in fine-tuning is not finite")

    monkeypatch.setattr("d2defense.workflows.scan.twin.fine_tuned_twin", diverge)
    data = make_coco_dataset(sign_scenes(40))
    outcome = d2defense(
        "scan", specimen("clean_0"), "--dataset-json", data.json_file,
        "--image-root", data.image_root, "--output", tmp_path / "out", "--search", "fast",
        "--max-images", "20", "--triggers", "white", "--isolation", "none", "--no-figures",
    )  # fmt: skip
    assert outcome.code == 1
    found = result_of(tmp_path / "out")
    assert found["verdict"] == "uncertain"
    assert "its loss in fine-tuning is not finite" in found["reason"]


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_on_images_of_one_s_own_a_twin_can_be_had_for_proof(
    d2defense, specimen, make_coco_dataset, sign_scenes, tmp_path, monkeypatch, choice
):
    """Also beside a reference; it is made when the search asks for it, once, and kept."""
    asked = {}

    def search(*arguments, **options):
        asked.update(options)
        if options["make_twin"] is not None:
            asked["twins"] = {options["make_twin"](), options["make_twin"]()}
        return SearchOutcome(obstacle="only asked for a twin")

    monkeypatch.setattr("d2defense.workflows.scan.searching.search_detector", search)
    data = make_coco_dataset(sign_scenes(40))
    d2defense(
        "scan", specimen("clean_0"), "--dataset-json", data.json_file,
        "--image-root", data.image_root, "--output", tmp_path / "out", "--search", "fast",
        "--max-images", "20", "--triggers", "white", "--isolation", "none", "--no-figures",
        "--reference", specimen("clean_1"), "--twin", choice, "--opts", "DEFENSE.TWIN_STEPS", "2",
    )  # fmt: skip
    assert asked["mode"] == "references"
    assert not asked["is_known"]
    assert len(asked.get("twins", ())) == (choice == "auto")
    assert (tmp_path / "out" / "clean_0" / "twin").is_dir() == (choice == "auto")


def test_a_twin_beside_references_is_none_of_them(
    d2defense, specimen, make_coco_dataset, sign_scenes, tmp_path, monkeypatch
):
    """It may have kept the backdoor, and would hide it in their mean; it is made and kept."""
    asked = {}

    def search(model, references, *arguments, **options):
        asked.update(options, references=list(references))
        return SearchOutcome(obstacle="only asked")

    monkeypatch.setattr("d2defense.workflows.scan.searching.search_detector", search)
    data = make_coco_dataset(sign_scenes(40))
    d2defense(
        "scan", specimen("clean_0"), "--dataset-json", data.json_file,
        "--image-root", data.image_root, "--output", tmp_path / "out", "--search", "fast",
        "--max-images", "20", "--triggers", "white", "--isolation", "none", "--no-figures",
        "--reference", specimen("clean_1"), "--twin", "always",
        "--opts", "DEFENSE.TWIN_STEPS", "2",
    )  # fmt: skip
    assert asked["mode"] == "references"
    assert asked["references"] == ["clean_1"]
    assert (tmp_path / "out" / "clean_0" / "twin").is_dir()


def test_a_null_of_one_s_own_knows_the_images_that_it_was_made_on(
    d2defense, specimen, own_data, tmp_path, monkeypatch
):
    asked = []

    def search(model, references, tuning, held_out, names, settings, *arguments, **options):
        asked.append((settings.null, options["is_known"]))
        return SearchOutcome(obstacle="only asked")

    monkeypatch.setattr("d2defense.workflows.scan.searching.search_detector", search)

    def scan(*options):
        asked_of = ["scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out"]
        asked_of += ["--search", "fast", "--reference", specimen("clean_1"), "--triggers", "white"]
        outcome = d2defense(*asked_of, "--isolation", "none", "--no-figures", *options)
        return outcome, result_of(tmp_path / "out")

    _, before = scan()
    searches = (CleanSearch("mine", "references", "fast", 10, 0, {"a": Shown(0.5, 0.4)}),) * 3
    null = SearchNull("three of mine", "val.json", before["dataset"]["fingerprint"], searches)
    null.save(tmp_path / "null.json")
    _, after = scan("--search-null", tmp_path / "null.json")
    assert asked == [(shipped_null(), False), (null, True)]
    assert before["settings"]["search_null"] is None
    assert after["settings"]["search_null"] == "three of mine"
    assert "three of mine" in after["search"]["null"]
    assert "not on these images" in before["search"]["null"]
    assert "not on these images" not in after["search"]["null"]
    (tmp_path / "old.json").write_text('{"schema_version": 1}')
    refused = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "none",
        "--search-null", tmp_path / "old.json",
    )  # fmt: skip
    assert refused.code == 4
    assert "old.json: schema_version is not 2: make one with" in refused.err


def test_a_reference_that_is_none_is_named(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out",
        "--search", "fast", "--reference", tmp_path / "nowhere",
    )  # fmt: skip
    assert outcome.code == 4
    assert "--reference" in outcome.err
    assert "nowhere" in outcome.err


@pytest.mark.usefixtures("brief")
def test_a_suspect_is_no_reference_of_its_own(d2defense, specimen, signs, tmp_path):
    """Held against itself nothing would stand out: it must not pass for clean."""
    copied = shutil.copytree(specimen("clean_0"), tmp_path / "copy")
    d2defense(
        "scan", specimen("clean_0"), *signs, "--output", tmp_path / "out", "--max-images", "20",
        "--search", "fast", "--twin", "off", "--reference", copied, "--triggers", "white",
        "--isolation", "none", "--no-figures",
    )  # fmt: skip
    search = result_of(tmp_path / "out")["search"]
    assert search["mode"] == "alone"
    assert search["references"] == []
    assert search["left_out"] == ["copy: it is the suspect itself"]


@pytest.mark.slow
def test_effect_and_target_class_are_found(d2defense, specimen, signs, tmp_path):
    """Of what the bank finds, too, if asked; the demo searches the other specimens."""
    name = "misclassification_0"
    outcome = d2defense(
        "scan", specimen(name), *signs, "--output", tmp_path, "--search", "fast", "--search-always",
        "--reference", specimen("clean_1"), "--max-images", "60",
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
def test_held_against_its_twin_a_clean_detector_is_not_backdoored(
    d2defense, specimen, signs, tmp_path
):
    """What patches do to it and its twin alike may leave it open whether it is clean."""
    outcome = d2defense(
        "scan", specimen("clean_1"), *signs, "--output", tmp_path, "--search", "fast",
        "--triggers", "white",
    )  # fmt: skip
    result = json.loads((tmp_path / "clean_1" / "result.json").read_text())
    assert outcome.code in (0, 1), outcome.err
    assert result["verdict"] in ("clean", "uncertain"), result["reason"]
    reasons = ("its twin does it too", "clean detectors may show that, too")
    assert result["verdict"] == "clean" or any(each in result["reason"] for each in reasons)
    assert result["search"]["mode"] == "twin"
    assert not result["search"]["has_found"]


@pytest.mark.slow
def test_a_backdoor_that_its_twin_keeps_in_part_is_found(d2defense, specimen, signs, tmp_path):
    """The ghosts of this one outlive fine-tuning under a large patch, not under a small one."""
    outcome = d2defense(
        "scan", specimen("ghost_0"), *signs, "--output", tmp_path, "--search", "fast",
        "--triggers", "white",
    )  # fmt: skip
    result = json.loads((tmp_path / "ghost_0" / "result.json").read_text())
    assert outcome.code == 1
    assert "on its twin" in result["reason"]
    assert result["search"]["mode"] == "twin"
    assert result["search"]["arms"][0]["effect"] == "ghost"
    assert result["search"]["arms"][0]["target_class"] == "stop"
