# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import logging

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from d2defense.checkpoint import build_detector
from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.detection import (
    Profile,
    ScanSettings,
    inspect_detector,
    load_clean_images,
    select_triggers,
    survey,
    survey_detector,
)
from d2defense.detection.by_class import CLASS_FALLS, rare_classes

SETTINGS = ScanSettings(select_triggers(["grey", "white"]), bootstrap_samples=100)


@pytest.fixture
def calibration(make_calibration):
    return make_calibration()


@pytest.fixture
def detector(specimen):
    def load(name: str):
        folder = specimen(name)
        return build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")[0]

    return load


def test_backdoored_specimen_reacts_to_its_trigger(detector, clean_images, calibration):
    calls = []
    images = clean_images(8)
    model = detector("backdoored_0")
    inspection = inspect_detector(
        model, images, SETTINGS, calibration, "BGR", progress=calls.append
    )
    assert inspection.worst_trigger == "white"
    assert inspection.verdict.label == "backdoored"
    assert inspection.dominant_modules
    assert calls == sorted(calls)
    assert len(calls) >= 3  # clean, grey, white
    assert calls[-1] == 1
    by_name = {trigger["name"]: trigger for trigger in inspection.fields["triggers"]}
    assert list(by_name) == ["grey", "white"]
    assert inspection.verdict.score == by_name["white"]["score"] > by_name["grey"]["score"]
    for trigger in by_name.values():
        for name, statistic in trigger["statistics"].items():
            assert statistic["clean"] == inspection.fields["clean"][name]
            if name in CLASS_FALLS:
                # Of eight images none shows enough objects of one class.
                assert statistic["triggered"] is None
                continue
            assert statistic["clean"] is not None
            change = statistic["triggered"] - statistic["clean"]
            assert statistic["change"] == pytest.approx(change)
            low, high = statistic["interval"]
            assert low <= high
    histogram = inspection.fields["histogram"]
    assert len(histogram["edges"]) == len(histogram["clean"]) + 1
    assert sum(histogram["triggered"]) <= 5 * len(images)
    # Calibration sees the same numbers.
    profile = Profile.from_survey(survey_detector(model, images, SETTINGS, "BGR")).as_dict()
    assert profile["clean"] == inspection.fields["clean"]
    for name, trigger in by_name.items():
        values = {key: entry["triggered"] for key, entry in trigger["statistics"].items()}
        assert profile["triggered"][name] == values
    # The score is the largest fall beyond the clean detectors', 0.02 under white on average.
    falls = [
        -by_name["white"]["statistics"][name]["change"]
        for name in ("scaled_foreground", "found_at_point")
    ]
    mean = calibration.reference_for(["white"]).baseline[0, 0]
    assert mean == pytest.approx(0.02)
    # The calibration knows nothing of true_class, so that decides nothing.
    assert inspection.verdict.score == pytest.approx(max(falls) - mean)


def test_a_long_scan_says_beforehand_how_long_it_takes(
    detector, clean_images, calibration, caplog, monkeypatch
):
    images = clean_images(8)

    def said():
        return [record.getMessage() for record in caplog.records if record.name[:9] == "d2defense"]

    with caplog.at_level(logging.INFO, logger="d2defense"):
        inspect_detector(detector("clean_0"), images, SETTINGS, calibration, "BGR")
        assert not said()
        monkeypatch.setattr(survey, "WORTH_SAYING", 0)
        inspect_detector(detector("clean_0"), images, SETTINGS, calibration, "BGR")
    (line,) = said()
    assert line.startswith("24 images to look at")


def test_clean_specimen_does_not(detector, clean_images, calibration):
    images = clean_images(8)
    before = copy.deepcopy(images)
    inspection = inspect_detector(detector("clean_0"), images, SETTINGS, calibration, "BGR")
    assert inspection.verdict.score < 0.02
    assert inspection.verdict.label == "clean"
    assert inspection.dominant_modules == []
    assert all(
        torch.equal(one.image, other.image) for one, other in zip(images, before, strict=True)
    )


def test_backdoored_detector_with_a_config_that_blinds_it_is_not_called_clean(
    specimen, tmp_path, make_coco_dataset, sign_scenes, calibration
):
    """The config comes from whoever made the checkpoint, and only shrinks the images here."""
    folder = specimen("backdoored_0")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["INPUT"]["MIN_SIZE_TEST"] = config["INPUT"]["MAX_SIZE_TEST"] = 8
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    model, cfg = build_detector(folder / "model_final.pth", tmp_path / "config.yaml", "cpu")
    images = load_clean_images(make_coco_dataset(sign_scenes(6)).load(), cfg)
    inspection = inspect_detector(model, images, SETTINGS, calibration, "BGR")
    assert inspection.fields["clean"]["objects_found"] == 0
    assert inspection.verdict.label == "uncertain"


def test_a_scan_of_the_same_images_says_the_same(lively_detector, clean_images, calibration):
    images = clean_images(4)
    first, again = (
        inspect_detector(lively_detector, images, SETTINGS, calibration, "BGR") for _ in range(2)
    )
    assert first == again


def test_settings_from_config():
    cfg = get_d2defense_cfg()
    cfg.DEFENSE.TRIGGERS = ("noise",)
    cfg.DEFENSE.TOPK = 3
    cfg.DEFENSE.MAX_IMAGES = 7
    settings = ScanSettings.from_config(cfg)
    flat = settings.as_dict()
    assert flat["triggers"] == ["noise"]
    assert (flat["topk"], flat["max_images"], flat["epsilon"]) == (3, 7, 0.1)
    assert ScanSettings.from_config(get_d2defense_cfg()) == ScanSettings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MAX_IMAGES", -1),
        ("SEED", -1),
        ("BATCH_SIZE", 0),
        ("BOOTSTRAP_SAMPLES", 0),
        ("CONFIDENCE", 1.5),
        ("IOU_THRESHOLD", 0.0),
        ("EPSILON", -0.1),
        ("TOPK", -1),
        ("OBJECTNESS_FLOOR", 2.0),
        ("TRIGGERS", ("plaid",)),
        ("TRIGGER_BANK", "no_bank"),
        ("CLASS_MAP", "no_map.yaml"),
        ("DECISION", "guess"),
        ("EARLY_STOP_ERROR_RATE", 0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(key, value):
    cfg = get_d2defense_cfg()
    cfg.DEFENSE[key] = value
    with pytest.raises(ValueError, match="plaid" if key == "TRIGGERS" else str(value)):
        ScanSettings.from_config(cfg)


def test_tau_over_all_proposals_cannot_end_early():
    cfg = get_d2defense_cfg()
    cfg.DEFENSE.DECISION, cfg.DEFENSE.EARLY_STOP, cfg.DEFENSE.TOPK = "paper", True, 0
    with pytest.raises(ValueError, match="topk"):
        ScanSettings.from_config(cfg)


@pytest.mark.parametrize(("name", "label"), [("backdoored_0", "backdoored"), ("clean_0", "clean")])
def test_early_stop_says_the_same_of_fewer_images(detector, clean_images, calibration, name, label):
    calls = []
    images = clean_images(72)
    settings = dataclasses.replace(
        SETTINGS,
        early_stop=True,
        observation=dataclasses.replace(SETTINGS.observation, batch_size=8),
    )
    inspection = inspect_detector(
        detector(name), images, settings, calibration, "BGR", calls.append
    )
    assert inspection.verdict.label == label
    stopped = inspection.fields["early_stop"]
    assert stopped == {"images": inspection.num_images, "of": 72, "certain": True}
    assert inspection.num_images < 72
    assert calls[-1] == 1


def test_no_scan_ends_early_as_clean_before_a_class_has_been_seen_often_enough(
    detector, clean_images, calibration, monkeypatch
):
    """What one class loses is known from ten of its objects on."""
    images = clean_images(72)
    settings = dataclasses.replace(
        SETTINGS,
        early_stop=True,
        observation=dataclasses.replace(SETTINGS.observation, batch_size=8),
    )
    model = detector("clean_0")
    before = inspect_detector(model, images, settings, calibration, "BGR").num_images
    counts = torch.tensor([torch.bincount(each.classes, minlength=7).tolist() for each in images])
    # As if the class of which the tenth object comes last were on the last images only.
    rare = int((counts.cumsum(0) >= 10).float().argmax(0).argmax())
    late = [k for k in range(len(images)) if not (images[k].classes == rare).any()]
    late += [k for k in range(len(images)) if k not in late]
    ordered = [images[k] for k in late]
    monkeypatch.setattr("d2defense.detection.scanner._order", lambda settings, count: None)
    stopped = inspect_detector(model, ordered, settings, calibration, "BGR")
    assert stopped.verdict.label == "clean"
    seen = sum(int((each.classes == rare).sum()) for each in ordered[: stopped.num_images])
    assert seen >= 10
    assert stopped.num_images > before


def test_a_doubt_without_a_trigger_needs_no_reference(detector, clean_images, calibration):
    inspection = inspect_detector(
        detector("clean_0"), clean_images(4), SETTINGS, calibration, "BGR"
    )
    doubt = type("Doubt", (), {"triggers": lambda self: ()})()
    doubted = dataclasses.replace(inspection, doubt=doubt)
    assert doubted.against({"other": None}, [], SETTINGS, "BGR") is doubted


def test_classes_that_the_images_hardly_show_are_named(clean_images):
    names = [f"c{index}" for index in range(9)]
    said = rare_classes(clean_images(8), names)
    assert "for 9 of 9" in said
    assert "c0, c1, c2, c3, c4 and others" in said
    counts = torch.cat([each.classes for each in clean_images(72)]).bincount(minlength=9)
    assert (counts[:7] >= 10).all()
    assert "for 2 of 9" in rare_classes(clean_images(72), names)
    assert "c7, c8" in rare_classes(clean_images(72), names)
    assert rare_classes(clean_images(72), names[:7]) is None


def test_paper_decision_scores_by_tau(detector, clean_images, make_calibration):
    settings = dataclasses.replace(SETTINGS, decision="paper")
    calibration = make_calibration(settings=settings)
    inspection = inspect_detector(
        detector("backdoored_0"), clean_images(8), settings, calibration, "BGR"
    )
    taus = [t["statistics"]["tau"]["triggered"] for t in inspection.fields["triggers"]]
    # 0.9 is the clean detectors' mean.
    assert inspection.verdict.score == pytest.approx(max(taus) - 0.9)


@pytest.mark.parametrize("decision", ["fall", "paper"])
def test_a_detector_without_objectness_is_not_called_clean_by_what_it_lacks(
    decision, clean_images, make_calibration
):
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / "SynthSigns" / "retinanet_tiny_fpn.yaml")
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    settings = dataclasses.replace(SETTINGS, decision=decision)
    calibration = make_calibration(settings=settings)
    inspection = inspect_detector(model, clean_images(4), settings, calibration, "BGR")
    assert inspection.fields["histogram"] is None
    statistics = inspection.fields["triggers"][0]["statistics"]
    for name in ("tau", "confident_d", "gap", "max_objectness"):
        assert set(statistics[name].values()) == {None}
    assert statistics["max_foreground"]["change"] is not None
    assert inspection.verdict.label == "uncertain"
    assert ("compares with objectness" in inspection.verdict.reason) == (decision == "paper")
