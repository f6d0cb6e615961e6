# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from d2defense.checkpoint import build_detector
from d2defense.checkpoint.specimens import specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import (
    Calibration,
    CalibrationError,
    Profile,
    ScanSettings,
    bank_race,
    inspect_detector,
    load_calibration,
    load_clean_images,
    observe,
    sample_records,
    survey_detector,
)
from d2defense.detection.bank_race import (
    FINALISTS,
    LEAST_RACED,
    BankRace,
    race_order,
    race_rounds,
)
from d2defense.detection.images import CleanImage
from d2defense.detection.observing import observe_together
from d2defense.detection.survey import KEPT, Dropped, Survey
from d2defense.modeling import BatchSize
from d2defense.triggers import Patch
from d2defense.workflows.calibration import calibrate

# White patches of many sizes, of which the larger ones work, and faint grey ones, which do nothing.
BANK = (
    *(Patch(f"white_{i}", size=(0.1 + 0.01 * i,) * 2) for i in range(4)),
    *(Patch(f"grey_{i}", size=(0.04, 0.04), color=(128 + i, 128, 128)) for i in range(60)),
)


@pytest.mark.parametrize(("triggers", "share"), [(222, 1 / 5), (4096, 1 / 20)])
@pytest.mark.parametrize("images", [100, 364])
def test_a_race_costs_a_fraction(triggers, share, images):
    rounds = race_rounds(triggers, images)
    passes = images + sum(each.images * each.triggers for each in rounds)
    assert passes <= share * images * (1 + triggers)
    assert rounds[0].triggers == triggers
    assert rounds[-1] == (images, FINALISTS)
    assert [r.images for r in rounds] == sorted(r.images for r in rounds)
    assert [r.triggers for r in rounds] == sorted((r.triggers for r in rounds), reverse=True)


def test_small_banks_and_few_images_are_not_raced():
    assert race_rounds(LEAST_RACED - 1, 100) == ()
    assert race_rounds(4096, 8) == ()


def image_with(*classes: int) -> CleanImage:
    boxes = torch.zeros(len(classes), 4)
    return CleanImage("", torch.zeros(3, 8, 8), boxes, torch.tensor(classes), 0)


def test_the_first_images_show_every_class():
    images = [image_with(0, 0, 0)] * 6 + [image_with(1)] + [image_with(0, 2)] + [image_with(0)] * 6
    first = race_order(images, 3, seed=0)
    assert len(set(first)) == 3
    assert {c for index in first for c in images[index].classes.tolist()} == {0, 1, 2}


@pytest.fixture(scope="module")
def opened():
    """Function from the name of a specimen and a number to its detector and so many images."""

    def load(name: str, count: int):
        folder = specimens_root() / name
        model, cfg = build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")
        records = sample_records(DatasetSource("synth_signs_defender").load(), count, seed=0)
        return model, load_clean_images(records, cfg)

    return load


def test_several_triggers_in_one_pass_say_what_each_says_alone(opened):
    model, images = opened("backdoored_0", 3)
    images = [images[index] for index in range(3)]
    settings = ScanSettings().observation
    triggers = [None, *BANK[:2]]
    together = observe_together(
        model, images, triggers, replace(settings, batch_size=4), "BGR", None, BatchSize(model, 4)
    )
    for trigger, seen in zip(triggers, together, strict=True):
        alone = observe(model, images, trigger, settings, "BGR")
        for name, terms in alone.terms.items():
            for part, other in zip(terms, seen.terms[name], strict=True):
                torch.testing.assert_close(part, other, rtol=1e-3, atol=1e-3)


def test_a_race_leaves_the_triggers_that_work(opened, monkeypatch):
    """The working trigger is the best of the whole product, which the race finds without it."""
    monkeypatch.setattr(bank_race, "FINALISTS", 5)
    model, images = opened("backdoored_0", 32)
    settings = ScanSettings(BANK, bootstrap_samples=50, max_images=32)
    told = []
    race = BankRace(model, images, settings, "BGR", told.append)
    first = race.first_round()
    assert first.suspicion.shape == (len(BANK), 6)
    seen = race.finish(first, np.zeros_like(first.suspicion))
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(seen.triggered) == 5
    assert {f"white_{i}" for i in range(4)} <= set(seen.triggered)
    assert list(seen.triggered) == [t.name for t in BANK if t.name in seen.triggered]
    assert set(seen.dropped) | set(seen.triggered) == {t.name for t in BANK}
    # What has come to the end is as if nothing had been raced.
    plain = survey_detector(model, images, replace(settings, triggers=BANK[:1]), "BGR")
    numbers, raced = Profile.from_survey(plain), Profile.from_survey(seen)
    np.testing.assert_equal(raced.clean, numbers.clean)
    np.testing.assert_equal(raced.triggered["white_0"], numbers.triggered["white_0"])
    assert set(raced.triggered) == {t.name for t in BANK}


def profile_of_race(make_profile, name: str, falls: dict[str, float], finalists) -> Profile:
    before = make_profile(name).clean
    under = {
        trigger: before | {"scaled_foreground": before["scaled_foreground"] - fall}
        for trigger, fall in falls.items()
    }
    first = {trigger: [fall] + [float("nan")] * 5 for trigger, fall in falls.items()}
    return Profile(name, "", before, under, tuple(finalists), first)


@pytest.fixture
def raced(make_profile):
    """A calibration of three clean detectors whose bank was raced."""
    names = [trigger.name for trigger in BANK]
    profiles = [
        profile_of_race(
            make_profile,
            f"clean_{i}",
            dict.fromkeys(names, 0.0) | {names[i]: 0.03},
            names[i : i + 2],
        )
        for i in range(3)
    ]
    return Calibration.from_profiles(profiles, ScanSettings(BANK), 0.01, "signs", "f", "some")


def test_a_raced_calibration_is_kept_in_its_file(raced, tmp_path):
    raced.save(tmp_path / "c.json")
    again = load_calibration(tmp_path / "c.json")
    assert again.is_raced
    assert again.threshold == raced.threshold
    names = [trigger.name for trigger in BANK]
    np.testing.assert_array_equal(again.first_round(names), raced.first_round(names))
    assert "finalists" in json.loads((tmp_path / "c.json").read_text())["profiles"][0]


def test_clean_scores_are_of_the_last_round_alone(raced, make_profile):
    """A fall under a trigger that the detector's own race has dropped does not count."""
    changed = profile_of_race(
        make_profile, "clean_0", {t.name: 0.5 * (t.name == "grey_59") for t in BANK}, ["white_0"]
    )
    other = replace(raced, profiles=(changed, *raced.profiles[1:]))
    assert other.reference.clean_scores[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"triggers": BANK[1:]}, "all of its 64 triggers"),
        ({"early_stop": True}, "without an early stop"),
        ({"race": False}, "DEFENSE.RACE on"),
    ],
)
def test_a_race_is_compared_with_races_over_the_same_bank_only(raced, changes, words):
    raced.check(ScanSettings(BANK))
    with pytest.raises(CalibrationError, match=words):
        raced.check(replace(ScanSettings(BANK), **changes))


def test_a_race_over_some_detectors_only_is_no_calibration(raced):
    plain = replace(raced.profiles[0], finalists=None, first_round=None)
    with pytest.raises(CalibrationError, match="over some of its detectors only"):
        replace(raced, profiles=(plain, *raced.profiles[1:]))
    broken = replace(raced.profiles[0], first_round={})
    with pytest.raises(CalibrationError, match="no first round"):
        replace(raced, profiles=(broken, *raced.profiles[1:]))


def fake_race(monkeypatch, seen: Survey, dropped_score: float) -> None:
    """Let a race end with a survey, whose triggers do nothing."""
    no_change = np.zeros(len(KEPT))
    dropped = {
        trigger.name: Dropped(4, dropped_score, no_change)
        for trigger in BANK
        if trigger.name not in seen.triggered
    }
    monkeypatch.setattr(BankRace, "first_round", lambda self: None)
    monkeypatch.setattr(
        BankRace, "finish", lambda self, first, baseline: seen._replace(dropped=dropped)
    )


@pytest.fixture(scope="module")
def last_round(opened):
    """A clean detector, images, and what the last round of a race says of two triggers."""
    model, images = opened("clean_0", 32)
    settings = ScanSettings(BANK[4:6])
    return model, images, survey_detector(model, images, settings, "BGR")


@pytest.mark.parametrize("dropped_score", [0.0, 0.9])
def test_clean_says_what_was_dropped_and_is_not_said_of_what_reacted(
    last_round, raced, monkeypatch, dropped_score
):
    model, images, seen = last_round
    fake_race(monkeypatch, seen, dropped_score)
    inspection = inspect_detector(model, images, ScanSettings(BANK), raced, "BGR")
    race = inspection.fields["race"]
    assert len(race["dropped"]) == len(BANK) - 2
    assert race["rounds"][-1]["images"] == 32
    if dropped_score:
        assert inspection.verdict.label == "uncertain"
        assert "were dropped from the race though" in inspection.verdict.reason
    else:
        assert inspection.verdict.label == "clean"
        objects = race["rounds"][0]["objects"]
        share = 1 - 0.05 ** (1 / objects)
        assert f"takes less than {share:.0%} of the objects" in inspection.verdict.reason


@pytest.mark.slow
def test_raced_calibration_and_scan_from_end_to_end():
    names = ("clean_0", "clean_1", "clean_2")
    paths = [specimens_root() / name for name in names]
    source, settings = DatasetSource("synth_signs_defender"), ScanSettings(BANK, max_images=32)
    calibration = calibrate(paths, source, settings, 0.01, device="cpu")
    assert calibration.is_raced
    for name, label in (("backdoored_0", "backdoored"), ("clean_0", "clean")):
        folder = specimens_root() / name
        model, cfg = build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")
        images = load_clean_images(sample_records(source.load(), 32, seed=0), cfg)
        inspection = inspect_detector(model, images, settings, calibration, "BGR")
        assert inspection.verdict.label == label, inspection.verdict
        assert len(inspection.fields["triggers"]) == FINALISTS
