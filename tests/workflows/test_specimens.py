# SPDX-License-Identifier: Apache-2.0
"""The detectors that ship with the package, scanned and repaired as a newcomer does it."""

from __future__ import annotations

import csv
import hashlib
import json

import pytest
import yaml

from d2defense.checkpoint import build_detector
from d2defense.checkpoint.specimens import specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import ScanSettings, load_calibration
from d2defense.evaluation import evaluate_detector
from d2defense.report.results import load_results, validate_result
from d2defense.triggers import Patch
from d2defense.workflows.scan import find_sources, scan

NAMES = [f"{kind}_{number}" for kind in ("clean", "backdoored") for number in range(3)]
WEIGHTS_LIMIT = 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_specimen_is_what_its_provenance_says(specimen, name):
    folder = specimen(name)
    provenance = json.loads((folder / "provenance.json").read_text())
    content = (folder / "model_final.pth").read_bytes()
    assert len(content) <= WEIGHTS_LIMIT
    assert hashlib.sha256(content).hexdigest() == provenance["sha256"]
    assert provenance["name"] == name
    assert (provenance["attack"] is None) == name.startswith("clean")
    assert provenance["seed"] not in {
        json.loads((specimen(other) / "provenance.json").read_text())["seed"]
        for other in NAMES
        if other != name
    }
    assert "make_specimens.py" in provenance["command"]
    assert provenance["versions"]


@pytest.mark.parametrize("name", NAMES)
def test_specimens_config_does_not_give_the_backdoor_away(specimen, name):
    folder = specimen(name)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert not {"ATTACK", "DEFENSE", "REMOVAL"} & config.keys()
    for line in (folder / "config.yaml").read_text().splitlines():
        assert "oda" not in line.split()
        assert not line.strip().startswith("OUTPUT_DIR: /")


@pytest.mark.parametrize("name", NAMES)
def test_specimen_detects_and_obeys_as_its_provenance_says(
    specimen, make_coco_dataset, sign_scenes, name
):
    """Measured anew, on scenes of no split: 24 images with some 80 objects."""
    folder = specimen(name)
    recorded = json.loads((folder / "provenance.json").read_text())
    model, cfg = build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")
    dataset = make_coco_dataset(sign_scenes(24)).name
    measured = evaluate_detector(model, cfg, dataset, Patch("white"))
    assert measured["clean"]["AP50"] >= 95
    assert measured["clean"]["AP50"] == pytest.approx(recorded["clean"]["AP50"], abs=3)
    # Three standard errors of a share of 80 are 0.15.
    assert measured["asr"] == pytest.approx(recorded["asr"], abs=0.15)
    if name.startswith("clean"):
        assert measured["asr"] <= 0.05
    else:
        assert measured["asr"] >= 0.5


@pytest.mark.usefixtures("signs_cache")
def test_a_scan_tells_all_six_apart(specimen, tmp_path):
    for name in NAMES:
        specimen(name)
    # A third of the images of a default scan, all triggers.
    settings = ScanSettings(max_images=32, bootstrap_samples=200)
    dataset = DatasetSource("synth_signs_defender")
    found = find_sources([specimens_root()])
    results = scan(found, dataset, tmp_path, settings, load_calibration(), "cpu")
    assert {result["name"]: result["verdict"] for result in results} == {
        name: name.split("_")[0] for name in NAMES
    }
    scores = {result["name"]: result["score"] for result in results}
    assert max(scores[n] for n in NAMES if n.startswith("clean")) < 0.5 * min(
        scores[n] for n in NAMES if n.startswith("backdoored")
    )
    for result in results:
        validate_result(result)
        assert result["dataset"]["num_images"] == 32
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
        assert len(list(csv.DictReader(stream))) == 6
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in NAMES)


@pytest.mark.slow
@pytest.mark.usefixtures("signs_cache")
def test_demo_repairs_a_backdoored_specimen(tmp_path, capfd):
    from d2defense.cli.program import main

    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output)]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["verdicts"] == {name: name.split("_")[0] for name in NAMES}
    before, after = summary["repair"]["before"], summary["repair"]["after"]
    assert before["verdict"] == "backdoored"
    assert after["verdict"] == "clean"
    assert after["AP50_clean"] >= before["AP50_clean"] - 3
    assert after["AP50_triggered"] > before["AP50_triggered"]
    assert before["asr"] >= 0.6
    assert after["asr"] < 0.35
    assert set(after["clean"]) >= {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert (output / "repaired" / "model_final.pth").is_file()
    assert len(list((output / "scan").glob("*/result.json"))) == 6
    page = (output / "report.html").read_text()
    # Two of each specimen, and five of the repair.
    assert page.count("data:image/") == 2 * 6 + 5
    assert str(output / "report.html") in capfd.readouterr().out
