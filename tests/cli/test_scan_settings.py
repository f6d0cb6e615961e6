# SPDX-License-Identifier: Apache-2.0
"""What a scan tries and how it decides, as options of the program."""

from __future__ import annotations

import json

import pytest

from d2defense.detection import load_calibration
from d2defense.report.results import load_results

QUICK = ["--isolation", "none", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]

BANK = """
triggers:
  - name: "{color}_{size}"
    grid:
      color: {white: [255, 255, 255], red: [255, 0, 0]}
      size: [0.1, 0.2]
"""


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank.yaml"
    path.write_text(BANK)
    return path


def test_a_bank_of_ones_own_is_calibrated_and_scanned_with(
    d2defense, specimen, own_data, bank, tmp_path
):
    thresholds = tmp_path / "thresholds.json"
    clean = [specimen(f"clean_{index}") for index in range(3)]
    made = d2defense(
        "calibrate", *clean[:2], *own_data, "--output", thresholds, "--trigger-bank", bank
    )
    assert made.code == 0
    assert "leave-one-out" in made.out
    options = [*own_data, "--trigger-bank", bank, "--calibration", thresholds]
    outcome = d2defense(
        "scan", clean[2], specimen("backdoored_0"), *options, "--output", tmp_path / "out", *QUICK
    )
    results = {result["name"]: result for result in load_results(tmp_path / "out")}
    # Two detectors make a high threshold: whether a backdoor lies above it is not the point here.
    assert outcome.code == int(any(r["verdict"] != "clean" for r in results.values()))
    assert results["clean_2"]["score"] < 0.1 < results["backdoored_0"]["score"]
    for result in results.values():
        names = [trigger["name"] for trigger in result["triggers"]]
        assert names == ["white_0.1", "white_0.2", "red_0.1", "red_0.2"]
        assert result["threshold"] == json.loads(thresholds.read_text())["threshold"]
        assert "not on" not in result["calibration"]


def test_a_calibration_is_refused_with_anything_else(d2defense, specimen, own_data, bank, tmp_path):
    thresholds = tmp_path / "thresholds.json"
    clean = [specimen("clean_0"), specimen("clean_1")]
    made = d2defense(
        "calibrate", *clean, *own_data, "--output", thresholds, "--triggers", "white", "noise"
    )
    assert made.code == 0

    def scan(*options):
        return d2defense(
            "scan", clean[0], *own_data, "--calibration", thresholds,
            "--output", tmp_path / "out", *options, *QUICK,
        )  # fmt: skip

    for options, reason in (
        (["--trigger-bank", bank], "made without trigger white_0.1"),
        ([], "made without trigger black"),
        (["--triggers", "white", "--decision", "paper"], "decision deployed, not paper"),
        (["--triggers", "white", "--max-images", "7"], "made on other images"),
    ):
        outcome = scan(*options)
        assert outcome.code == 4
        assert reason in outcome.err
        assert "Traceback" not in outcome.err
    outcome = scan("--triggers", "white", "--max-images", "7", "--allow-mismatch")
    assert outcome.code == 0
    (result,) = load_results(tmp_path / "out")
    assert "calibrate for exact error rates" in result["calibration"]
    assert scan("--triggers", "noise").code == 0


def test_classes_are_matched_unless_a_map_says_them(
    d2defense, specimen, make_coco_dataset, sign_scenes, tmp_path
):
    source = make_coco_dataset(sign_scenes(8), num_classes=9)
    data = ["--dataset-json", source.json_file, "--image-root", source.image_root]

    def true_class(code, *options):
        """Of the result, with what it says of how classes were matched."""
        outcome = d2defense(
            "scan", specimen("clean_0"), *data, "--output", tmp_path / "out", "--force", *options,
            "--triggers", "white", *QUICK,
        )  # fmt: skip
        assert outcome.code == code
        (result,) = load_results(tmp_path / "out")
        assert ("class map" in result["reason"]) == bool(code)
        matched = [line for line in result["warnings"] if "matched" in line]
        assert len(matched) == (not options)
        return result["clean"]["true_class"]

    assert true_class(0) > 0.9
    known = tmp_path / "map.json"
    known.write_text(json.dumps({f"c{index}": index for index in range(7)}))
    assert true_class(0, "--class-map", known) > 0.9
    known.write_text(json.dumps({f"c{index}": 6 - index for index in range(7)}))
    assert true_class(1, "--class-map", known) < 0.5


def test_papers_decision_and_early_stop(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "scan", specimen("backdoored_0"), *own_data, "--output", tmp_path / "out",
        "--early-stop", "--triggers", "white", *QUICK, "DEFENSE.BATCH_SIZE", "2",
        "DEFENSE.EARLY_STOP_ERROR_RATE", "0.4",
    )  # fmt: skip
    assert outcome.code == 1
    (result,) = load_results(tmp_path / "out")
    assert result["verdict"] == "backdoored"
    assert result["early_stop"] == {"images": 6, "of": 8, "certain": True}
    outcome = d2defense(
        "scan", specimen("backdoored_0"), *own_data, "--output", tmp_path / "out",
        "--decision", "paper", *QUICK,
    )  # fmt: skip
    assert outcome.code in (0, 1)
    (result,) = load_results(tmp_path / "out")
    assert result["early_stop"] is None
    assert result["settings"]["decision"] == "paper"
    # The score is tau under the worst trigger, less the mean of clean detectors under it.
    under = {t["name"]: t["statistics"]["tau"]["triggered"] for t in result["triggers"]}
    calibration = load_calibration(decision="paper").reference_for(list(under))
    excess = [tau - mean for tau, (mean,) in zip(under.values(), calibration.baseline, strict=True)]
    assert result["score"] == pytest.approx(max(excess))


@pytest.mark.parametrize("rate", ["0", "1", "2"])
def test_false_alarm_rates_are_checked_before_anything_is_scanned(
    d2defense, specimen, own_data, tmp_path, rate
):
    outcome = d2defense(
        "calibrate", tmp_path / "gone", *own_data, "--output", tmp_path / "t.json",
        "--false-alarm-rate", rate,
    )  # fmt: skip
    assert outcome.code == 2
    assert f"false-alarm rate {float(rate)}" in outcome.err
