# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from d2defense.config import get_d2defense_cfg
from d2defense.detection import (
    Calibration,
    CalibrationError,
    ScanSettings,
    calibration_from_config,
    load_calibration,
    select_triggers,
)
from d2defense.triggers import Patch

ONE = ScanSettings(select_triggers(["white"]))
FALLS = ((0.05, 0.0), (0.11, 0.02), (0.07, 0.3), (0.13, 0.1))


@pytest.fixture
def calibration(make_calibration):
    return make_calibration(FALLS)


def leave_one_out_scores(falls) -> np.ndarray:
    """Each detector's largest fall beyond the mean of the others under the same trigger."""
    falls = np.array(falls)
    return np.array(
        [(fall - np.delete(falls, i, axis=0).mean(axis=0)).max() for i, fall in enumerate(falls)]
    )


@pytest.mark.parametrize(("detectors", "rate"), [(4, 0.1), (8, 0.05)])
def test_false_alarms_are_about_as_rare_as_promised(make_calibration, detectors, rate):
    """n clean detectors set a threshold; the next one exceeds it at the given rate.

    They vary much more than the least deviation that a calibration assumes. The scores of the
    calibration's own detectors share the others' mean, so the rate is not exact.
    """
    rng = np.random.default_rng(0)
    trials = 800
    alarms = 0
    for falls in rng.normal(0.0, 10.0, (trials, detectors + 1, 1)):
        reference = make_calibration(falls[:-1].tolist(), rate, ONE).reference
        alarms += bool((falls[-1] - reference.baseline[:, 0]).max() > reference.threshold)
    # Four standard errors of a share.
    assert alarms / trials <= rate + 4 * (rate * (1 - rate) / trials) ** 0.5
    assert alarms / trials > rate / 4


@pytest.mark.parametrize("triggers", [2, 12])
def test_many_triggers_do_not_make_more_false_alarms(make_profile, triggers):
    rng = np.random.default_rng(1)
    bank = tuple(Patch(f"t{i}", seed=i) for i in range(triggers))
    settings = ScanSettings(bank)
    blank = make_profile("c", clean=30.0)
    trials, alarms = 150, 0
    for falls in rng.normal(0.0, 10.0, (trials, 7, triggers)):
        profiles = [
            dataclasses.replace(
                blank,
                triggered={
                    f"t{i}": blank.clean
                    | dict.fromkeys(("scaled_foreground", "found_at_point"), 30 - fall)
                    for i, fall in enumerate(row)
                },
            )
            for row in falls[:-1]
        ]
        made = Calibration.from_profiles(profiles, settings, 0.1, "d", "f")
        excess = falls[-1][:, None] - made.reference.baseline[:, :1]
        alarms += bool(excess.max() > made.threshold)
    assert alarms / trials <= 0.1 + 4 * (0.09 / trials) ** 0.5


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
def test_the_p_value_at_the_threshold_is_the_false_alarm_rate(make_calibration, rate):
    made = make_calibration(FALLS, rate).reference
    assert made.p_value(made.threshold) == pytest.approx(rate)
    assert made.p_value(made.threshold + 0.01) < rate < made.p_value(made.threshold - 0.01)


def test_threshold_is_the_textbooks_prediction_interval(calibration):
    """mean + t(0.99; 3) * sd * sqrt(1 + 1 / 4) of the scores, each against the other detectors."""
    scores = leave_one_out_scores(FALLS)
    reference = calibration.reference
    np.testing.assert_allclose(reference.clean_scores, scores)
    expected = scores.mean() + 4.540703 * scores.std(ddof=1) * 1.25**0.5
    assert calibration.threshold == pytest.approx(expected, rel=1e-6)
    assert reference.p_value(scores.mean()) == pytest.approx(0.5)


def test_baseline_is_the_mean_of_what_each_patch_does(calibration):
    baseline = calibration.reference_for(["grey", "white"]).baseline
    np.testing.assert_allclose(baseline[:, 0], [0.105, 0.09])
    assert np.isnan(baseline[:, 1]).all()  # the classes of these detectors are unknown


def test_threshold_of_fewer_triggers_is_their_own(calibration):
    reference = calibration.reference_for(["white"])
    scores = leave_one_out_scores([(white,) for white, _ in FALLS])
    np.testing.assert_allclose(reference.clean_scores, scores)
    assert reference.threshold < calibration.threshold


def test_more_detectors_and_more_patience_lower_the_threshold(make_calibration):
    few, many = ((0.05, 0), (0.15, 0)), ((0.05, 0), (0.15, 0)) * 5
    assert make_calibration(many).threshold < make_calibration(few).threshold
    assert make_calibration(few, 0.1).threshold < make_calibration(few).threshold


def test_almost_equal_scores_do_not_make_a_hair_trigger(make_calibration):
    """Four detectors that score alike do not show that all clean detectors do."""
    made = make_calibration(((0.001, 0), (0.001, 0), (0.0011, 0), (0.001, 0))).reference
    assert made.threshold > 0.03
    assert made.p_value(made.threshold) == pytest.approx(0.01)


def test_leave_one_out_holds_each_detector_to_the_threshold_of_the_others(make_calibration):
    assert make_calibration(FALLS[:3]).leave_one_out() is None
    alike = ((0.01, 0), (0.012, 0), (0.011, 0), (0.013, 0), (0.01, 0))
    assert make_calibration(alike).leave_one_out() == (0, 5)
    assert make_calibration((*alike, (0.9, 0))).leave_one_out() == (1, 6)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_false_alarm_rates_that_set_no_threshold_are_refused(make_calibration, rate):
    with pytest.raises(CalibrationError, match="false-alarm rate"):
        make_calibration(FALLS, rate)


def test_one_detector_sets_no_threshold(make_calibration):
    with pytest.raises(CalibrationError, match="at least 2"):
        make_calibration(FALLS[:1])


def test_round_trip(tmp_path, calibration):
    calibration.save(tmp_path / "thresholds.json")
    loaded = load_calibration(tmp_path / "thresholds.json")
    assert loaded.threshold == calibration.threshold
    assert (loaded.triggers, loaded.settings) == (calibration.triggers, calibration.settings)
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["threshold"] == calibration.threshold
    assert content["leave_one_out"] == {"alarms": 0, "detectors": 4}
    assert content["dataset"] == {"name": "signs", "fingerprint": "f" * 64}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "{}", '{"schema_version": 1}', '{"schema_version": 2, "name": "x"}',
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
        {"profiles": []},
        {"profiles": [{"name": "x"}]},
        {"profiles": 3},
        {"false_alarm_rate": "low"},
        {"false_alarm_rate": 2},
        {"decision": "guess"},
        {"triggers": ["white"]},
        {"triggers": {"plaid": "0"}},
        {"dataset": "signs"},
        {"settings": {"iou_threshold": "half"}},
    ],
)
def test_files_with_wrong_values_are_named(tmp_path, calibration, changes):
    path = tmp_path / "thresholds.json"
    calibration.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CalibrationError, match=r"thresholds\.json: "):
        load_calibration(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"gone\.json: "):
        load_calibration(tmp_path / "gone.json")


@pytest.mark.parametrize("decision", ["deployed", "fall", "paper"])
def test_the_calibration_that_ships_covers_the_default_scan(decision):
    shipped = load_calibration(decision=decision)
    shipped.check(ScanSettings(decision=decision))
    assert shipped.dataset == "synth_signs_defender"
    assert max(shipped.reference.clean_scores) < shipped.threshold
    # One of its detectors loses a class to a black patch by itself.
    assert shipped.leave_one_out().alarms <= 1


def test_other_triggers_are_refused(calibration):
    calibration.check(ScanSettings(select_triggers(["white"])))
    with pytest.raises(CalibrationError, match=r"\(some\) was made without trigger noise"):
        calibration.check(ScanSettings(select_triggers(["white", "noise"])))
    with pytest.raises(CalibrationError, match="with another trigger white"):
        calibration.check(ScanSettings((Patch("white", size=(0.2, 0.2)),)))


def test_another_decision_is_refused(calibration):
    settings = ScanSettings(select_triggers(["white"]), decision="paper")
    with pytest.raises(CalibrationError, match="made for decision deployed, not paper"):
        calibration.check(settings)


def test_settings_that_the_decision_depends_on_must_be_the_same(make_calibration):
    def settings(decision: str, **changes) -> ScanSettings:
        observation = dataclasses.replace(ScanSettings().observation, **changes)
        return ScanSettings(
            select_triggers(["white", "grey"]), decision=decision, observation=observation
        )

    for decision, key, free in (
        ("fall", "iou_threshold", "epsilon"),
        ("paper", "topk", "iou_threshold"),
    ):
        made = make_calibration(FALLS, settings=settings(decision))
        made.check(settings(decision, **{free: 0.25, "batch_size": 3}))
        with pytest.raises(CalibrationError, match=f"made with {key} .*, not 1"):
            made.check(settings(decision, **{key: 1}))


def test_other_images_are_refused_unless_allowed(tmp_path, make_calibration):
    made = make_calibration(FALLS, settings=ScanSettings(select_triggers(["white", "grey"])))
    made.check_images("signs", "f" * 64)
    with pytest.raises(CalibrationError, match=r"made on other images .*--allow-mismatch"):
        made.check_images("signs", "0" * 64)
    made.save(tmp_path / "c.json")
    cfg = get_d2defense_cfg()
    cfg.DEFENSE.CALIBRATION = str(tmp_path / "c.json")
    settings = ScanSettings(select_triggers(["white"]))
    with pytest.raises(CalibrationError):
        calibration_from_config(cfg, settings).check_images("cells", "0" * 64)
    cfg.DEFENSE.ALLOW_MISMATCH = True
    allowed = calibration_from_config(cfg, settings)
    allowed.check_images("cells", "0" * 64)
    assert "not on cells" in allowed.describe("cells", "0" * 64)


def test_description_says_when_the_images_are_others(calibration):
    assert "4 clean detectors" in calibration.describe("signs", "f" * 64)
    assert "not on" not in calibration.describe("signs", "f" * 64)
    assert "not on these images of it" in calibration.describe("signs", "0" * 64)
    shipped = load_calibration()
    shipped.check_images("cells", "0" * 64)
    assert "the default calibration" in shipped.describe("cells", "0" * 64)
    assert "not on cells: calibrate" in shipped.describe("cells", "0" * 64)
