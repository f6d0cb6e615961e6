# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from d2defense.detection import (
    Calibration,
    CalibrationError,
    ScanSettings,
    load_calibration,
    select_triggers,
)


def calibration(scores=(0.05, 0.11, 0.07, 0.13), rate: float = 0.01, **changes) -> Calibration:
    fields = {
        "name": "four detectors",
        "dataset": "signs",
        "triggers": ("white", "black"),
        "statistic": "fall",
        "false_alarm_rate": rate,
        "clean_scores": tuple(scores),
    }
    return Calibration(**fields | changes)


@pytest.mark.parametrize(("detectors", "rate"), [(3, 0.1), (8, 0.05)])
def test_false_alarms_are_as_rare_as_promised(detectors, rate):
    """n clean scores set a threshold; the next clean detector exceeds it at the given rate.

    The scores vary much more than the least deviation that a calibration assumes.
    """
    rng = np.random.default_rng(0)
    trials = 2000
    draws = rng.normal(0.0, 10.0, (trials, detectors + 1))
    alarms = sum(draw[-1] > calibration(draw[:-1].tolist(), rate).threshold for draw in draws)
    # Four standard errors of a share.
    assert alarms / trials == pytest.approx(rate, abs=4 * (rate * (1 - rate) / trials) ** 0.5)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
def test_the_p_value_at_the_threshold_is_the_false_alarm_rate(rate):
    made = calibration(rate=rate)
    assert made.p_value(made.threshold) == pytest.approx(rate)
    assert made.p_value(made.threshold + 0.01) < rate < made.p_value(made.threshold - 0.01)


def test_textbook_example():
    """Scores of mean 10 and deviation 2: 10 + t(0.99; 3) * 2 * sqrt(1 + 1 / 4)."""
    scores = 10 + 2 * np.array([-1.5, -0.5, 0.5, 1.5]) / np.std([-1.5, -0.5, 0.5, 1.5], ddof=1)
    made = calibration(scores, rate=0.01)
    assert made.threshold == pytest.approx(10 + 4.540703 * 2 * 1.25**0.5, rel=1e-6)
    assert made.p_value(10) == pytest.approx(0.5)


def test_more_detectors_and_more_patience_lower_the_threshold():
    few, many = (0.05, 0.15), (0.05, 0.15) * 5
    assert calibration(many).threshold < calibration(few).threshold
    assert calibration(rate=0.1).threshold < calibration(rate=0.01).threshold


def test_almost_equal_scores_do_not_make_a_hair_trigger():
    """Four detectors that score alike do not show that all clean detectors do."""
    made = calibration((0.001, 0.001, 0.0011, 0.001))
    assert made.threshold > 0.03
    assert made.p_value(made.threshold) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"clean_scores": (0.1,)},
        {"clean_scores": (0.1, float("nan"))},
        {"clean_scores": (0.1, float("inf"))},
        {"false_alarm_rate": 0.0},
        {"false_alarm_rate": 1.0},
    ],
)
def test_what_sets_no_threshold_is_refused(changes):
    with pytest.raises(CalibrationError):
        calibration(**changes)


def test_round_trip(tmp_path):
    made = calibration()
    made.save(tmp_path / "thresholds.json")
    assert load_calibration(tmp_path / "thresholds.json") == made
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["threshold"] == made.threshold


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "{}", '{"schema_version": 2}', '{"schema_version": 1, "name": "x"}',
     "\x00\xff"],
)  # fmt: skip
def test_files_that_are_no_calibration_are_named(tmp_path, content):
    path = tmp_path / "thresholds.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CalibrationError, match=r"thresholds\.json: ") as caught:
        load_calibration(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"clean_scores": [0.1]},
        {"clean_scores": [0.1, "high"]},
        {"false_alarm_rate": "low"},
        {"surprise": 1},
    ],
)
def test_files_with_wrong_values_are_named(tmp_path, changes):
    path = tmp_path / "thresholds.json"
    calibration().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CalibrationError, match=r"thresholds\.json: "):
        load_calibration(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"gone\.json: "):
        load_calibration(tmp_path / "gone.json")


def test_the_calibration_that_ships_covers_the_default_scan():
    shipped = load_calibration()
    shipped.check(ScanSettings())
    assert shipped.dataset == "synth_signs_defender"
    assert max(shipped.clean_scores) < shipped.threshold


def test_triggers_without_clean_scores_are_refused():
    made = calibration()
    made.check(ScanSettings(triggers=select_triggers(["white"])))
    with pytest.raises(CalibrationError, match=r"four detectors.*without trigger noise"):
        made.check(ScanSettings(triggers=select_triggers(["white", "noise"])))


def test_description_says_when_the_images_are_others():
    made = calibration()
    assert "4 clean detectors" in made.describe("signs")
    assert "not on" not in made.describe("signs")
    assert "not on cells" in made.describe("cells")
