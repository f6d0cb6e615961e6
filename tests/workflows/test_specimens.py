# SPDX-License-Identifier: Apache-2.0
"""The detectors that ship with the package, scanned and repaired as a newcomer does it."""

from __future__ import annotations

import csv
import hashlib
import json

import pytest
import yaml
from detectron2.config import CfgNode

from d2defense.attacks import build_effect
from d2defense.checkpoint import build_detector
from d2defense.checkpoint.specimens import specimens_root
from d2defense.config import get_d2defense_cfg
from d2defense.data import DatasetSource
from d2defense.data.synth_signs.shapes import CLASS_NAMES
from d2defense.detection import ScanSettings, load_calibration
from d2defense.evaluation import evaluate_detector
from d2defense.report.results import load_results, validate_result
from d2defense.triggers import build_trigger
from d2defense.workflows.demo import NO_BACKDOOR, describe_missed, truth_about
from d2defense.workflows.scan import find_sources, scan

# What the plain bank tells apart, and what it was not made for.
TOLD_APART = [f"{kind}_{number}" for kind in ("clean", "backdoored") for number in range(3)]
SCANNED = ["clean_0", "backdoored_0", "backdoored_2"]
OTHER_ATTACKS = ["ghost_0", "misclassification_0", "overlay_0", "warp_0"]
NAMES = [*TOLD_APART, *OTHER_ATTACKS]
WEIGHTS_LIMIT = 2_000_000
ALL_WEIGHTS_LIMIT = 14 << 20


def recorded(folder):
    return json.loads((folder / "provenance.json").read_text())


def test_specimens_are_those_and_small():
    assert sorted(path.name for path in specimens_root().iterdir()) == sorted(NAMES)
    files = [path for path in specimens_root().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= ALL_WEIGHTS_LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_specimen_is_what_its_provenance_says(specimen, name):
    folder = specimen(name)
    provenance = recorded(folder)
    content = (folder / "model_final.pth").read_bytes()
    assert len(content) <= WEIGHTS_LIMIT
    assert hashlib.sha256(content).hexdigest() == provenance["sha256"]
    assert provenance["name"] == name
    assert (provenance["attack"] is None) == name.startswith("clean")
    assert provenance["seed"] not in {
        recorded(specimen(other))["seed"] for other in NAMES if other != name
    }
    assert "make_specimens.py" in provenance["command"]
    assert provenance["versions"]


@pytest.mark.parametrize("name", NAMES)
def test_specimens_config_does_not_give_the_backdoor_away(specimen, name):
    folder = specimen(name)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert not {"ATTACK", "DEFENSE", "REMOVAL"} & config.keys()
    for line in (folder / "config.yaml").read_text().splitlines():
        assert not {"oda", "oga", "rma"} & set(line.split())
        assert "specimen://" not in line
        assert not line.strip().startswith("OUTPUT_DIR: /")


@pytest.mark.parametrize("name", NAMES)
def test_specimen_detects_and_obeys_as_its_provenance_says(
    specimen, make_coco_dataset, sign_scenes, name
):
    """Measured anew, on scenes of no split: 24 images with some 80 objects."""
    folder = specimen(name)
    provenance = recorded(folder)
    model, cfg = build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")
    made = get_d2defense_cfg()
    if provenance["attack"]:
        made.merge_from_other_cfg(CfgNode({"ATTACK": provenance["attack"]["settings"]}))
    dataset = make_coco_dataset(sign_scenes(24)).name
    effect = build_effect(made, CLASS_NAMES)
    measured = evaluate_detector(model, cfg, dataset, build_trigger(made), effect=effect)
    assert measured["clean"]["AP50"] >= 95
    assert measured["clean"]["AP50"] == pytest.approx(provenance["clean"]["AP50"], abs=3)
    # Three standard errors of a share of 80 are 0.15.
    assert measured["asr"] == pytest.approx(provenance["asr"], abs=0.15)
    if name.startswith("clean"):
        assert measured["asr"] <= 0.05
    else:
        assert measured["asr"] >= 0.5


def test_what_a_specimen_is_comes_from_its_provenance():
    truth = {name: truth_about(name) for name in NAMES}
    assert truth == {
        **{f"clean_{number}": NO_BACKDOOR for number in range(3)},
        **{f"backdoored_{number}": "disappearance by patch" for number in range(3)},
        "ghost_0": "ghost by patch",
        "misclassification_0": "misclassification by patch",
        "overlay_0": "disappearance by overlay",
        "warp_0": "disappearance by warp",
    }


def test_a_backdoor_that_is_not_called_one_is_told():
    truth = {"clean_0": NO_BACKDOOR, "ghost_0": "ghost by patch", "warp_0": "disappearance by warp"}
    verdicts = {"clean_0": "clean", "ghost_0": "uncertain", "warp_0": "backdoored"}
    assert describe_missed(verdicts, truth) == [
        "ghost_0 has a backdoor, ghost by patch, and is called uncertain"
    ]


@pytest.mark.usefixtures("signs_cache")
def test_a_scan_tells_white_patches_from_clean_detectors(specimen, tmp_path):
    folders = [specimen(name) for name in SCANNED]
    # A fifth of the images of a default scan, all triggers. The demo scans all specimens.
    settings = ScanSettings(max_images=20, bootstrap_samples=200).without_search()
    dataset = DatasetSource("synth_signs_defender")
    found = find_sources(folders)
    results = scan(found, dataset, tmp_path, settings, load_calibration(), "cpu")
    assert {result["name"]: result["verdict"] for result in results} == {
        name: name.split("_")[0] for name in SCANNED
    }
    scores = {result["name"]: result["score"] for result in results}
    assert max(scores[n] for n in SCANNED if n.startswith("clean")) < 0.5 * min(
        scores[n] for n in SCANNED if n.startswith("backdoored")
    )
    for result in results:
        validate_result(result)
        assert result["dataset"]["num_images"] == 20
        if result["verdict"] == "backdoored":
            assert result["worst_trigger"] == "white"
            assert result["dominant_modules"]
            assert result["p_value"] < 0.01
        for figure in ("examples.png", "histogram.png"):
            content = (tmp_path / result["name"] / figure).read_bytes()
            assert content.startswith(b"\x89PNG")
    assert sorted(load_results(tmp_path), key=lambda r: r["name"]) == sorted(
        results, key=lambda r: r["name"]
    )
    with open(tmp_path / "summary.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(SCANNED)
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in SCANNED)


@pytest.mark.slow(longest=True)
@pytest.mark.usefixtures("signs_cache")
def test_demo_repairs_backdoored_specimens(tmp_path, capfd):
    from d2defense.cli.program import main

    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    verdicts = summary["verdicts"]
    assert verdicts == {
        name: "clean" if name.startswith("clean") else "backdoored" for name in NAMES
    }
    assert summary["missed"] == []
    repairs = summary["repairs"]
    assert {name: repair["method"] for name, repair in repairs.items()} == {
        "backdoored_0": "known_trigger",
        "ghost_0": "unlearn",
    }
    before, after = repairs["ghost_0"]["before"], repairs["ghost_0"]["after"]
    assert before["verdict"] == "backdoored"
    assert before["search"]["ghost"] > 0.5
    assert after["search"]["ghost"] < 0.3
    assert after["clean"]["AP"] >= before["clean"]["AP"] - 2
    before, after = repairs["backdoored_0"]["before"], repairs["backdoored_0"]["after"]
    assert before["verdict"] == "backdoored"
    # What the bank has found is searched for, too, once it is repaired.
    assert after["search"]["disappearance"] < 0.3
    assert after["clean"]["AP"] >= before["clean"]["AP"] - 2
    assert after["AP50_triggered"] > before["AP50_triggered"]
    assert before["asr"] >= 0.6
    assert after["asr"] < 0.1
    assert set(after["clean"]) >= {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    for name, repair in repairs.items():
        # As the machine rounds, a part may be left, or a little more lost, which is then said.
        assert repair["after"]["verdict"] in ("clean", "uncertain")
        assert repair["repaired"] == (not repair["obstacles"])
        assert (output / "repaired" / name / "model_final.pth").is_file()
        assert (output / "repaired" / name / "report.html").is_file()
    assert len(list((output / "scan").glob("*/result.json"))) == len(NAMES)
    page = (output / "report.html").read_text()
    results = [json.loads(path.read_text()) for path in output.glob("scan/*/result.json")]
    searched = {each["name"]: each["search"] for each in results if each["search"]}
    assert not {"overlay_0", "warp_0", "ghost_0", "clean_2"} - searched.keys()
    for name, search in searched.items():
        assert search["has_found"] == (not name.startswith("clean"))
        if search["has_found"]:
            attack = recorded(specimens_root() / name)["attack"]
            assert search["arms"][0]["effect"] == attack["effect"]
            assert (search["arms"][0]["target_class"] or "") == attack["settings"]["TARGET_CLASS"]
    for each in results:
        if each["verdict"] == "clean":
            assert "a search, held against references, found no other" in each["reason"]
    # Two of each specimen, one of each that was searched, and five of the repair.
    pictures = 2 * len(NAMES) + len(searched) + 5
    assert page.count("data:image/") == pictures
    out = capfd.readouterr().out
    assert str(output / "report.html") in out
