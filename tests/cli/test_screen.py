# SPDX-License-Identifier: Apache-2.0
"""``screen``, as a user gives it."""

from __future__ import annotations

import csv
import json
import math
import shutil

import cv2
import numpy as np
import pytest
import yaml

from d2defense.checkpoint import load_state_dict, save_state_dict

RATE = ["--false-alarm-rate", "0.1", "--opts", "SCREENING.INCONSISTENCY.DOUBTFUL_SHARE", "0.0"]


@pytest.fixture
def folders(signs_cache, tmp_path):
    """A folder of clean images, and one of images to screen, one of which is broken."""
    from d2defense.data import load_dataset

    clean, images = tmp_path / "clean", tmp_path / "images"
    for folder, name, count in (
        (clean, "synth_signs_defender", 20),
        (images, "synth_signs_val", 3),
    ):
        folder.mkdir()
        for record in load_dataset(name)[:count]:
            shutil.copy(record["file_name"], folder)
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    # So narrow that nothing is left of it at the network's size.
    cv2.imwrite(str(images / "line.png"), np.zeros((2, 5000, 3), np.uint8))
    (images / "notes.txt").write_text("no image")
    return clean, images


def test_each_image_has_a_line_and_a_broken_one_stops_nothing(
    d2defense, specimen, folders, tmp_path
):
    clean, images = folders
    out = tmp_path / "out"
    outcome = d2defense(
        "screen", specimen("clean_0"), "--images", images, "--clean", clean, "--output", out, *RATE
    )
    assert outcome.code == 2, outcome.err
    assert [line for line in outcome.err.splitlines() if "broken.png" in line] != []
    records = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [r["image"] for r in records] == sorted(p.name for p in images.glob("*.png"))
    by_name = {r["image"]: r for r in records}
    assert by_name.pop("broken.png")["verdict"] == "error"
    line = by_name.pop("line.png")
    assert (line["verdict"], line["reason"].split(":")[0]) == ("error", "cannot be screened")
    for record in by_name.values():
        assert record["verdict"] in ("suspicious", "unsuspicious")
        assert (record["score"] > record["threshold"]) == (record["verdict"] == "suspicious")
        assert record["passes"] == 1.0
        assert record["detections"]
    rows = list(csv.DictReader((out / "images.csv").open()))
    assert [row["image"] for row in rows] == [r["image"] for r in records]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["images"], summary["unreadable"], summary["clean_images"]) == (5, 2, 20)
    assert summary["exit_code"] == 2
    assert "Screening" in (out / "report.html").read_text()


def test_frames_of_a_video(d2defense, specimen, folders, tmp_path):
    clean, images = folders
    video = tmp_path / "camera.avi"
    pixels = [cv2.imread(str(path)) for path in sorted(images.glob("*.png"))]
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (128, 128))
    for each in (p for p in pixels if p is not None and p.shape == (128, 128, 3)):
        writer.write(each)
    writer.release()
    out = tmp_path / "out"
    outcome = d2defense(
        "screen", specimen("clean_0"), "--images", video, "--clean", clean, "--output", out, *RATE
    )
    records = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [(r["image"], r["frame"]) for r in records] == [("camera.avi", i) for i in range(3)]
    assert outcome.code == int(any(r["verdict"] == "suspicious" for r in records))


@pytest.mark.parametrize(
    ("images", "rate", "code", "words"),
    [
        ("images", "0.01", 2, "20 clean images cannot hold a false alarm rate of 0.01"),
        ("nowhere", "0.1", 2, "neither a folder of images nor a video"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    d2defense, specimen, folders, tmp_path, images, rate, code, words
):
    clean, _ = folders
    out = tmp_path / "out"
    outcome = d2defense(
        "screen", specimen("clean_0"), "--images", tmp_path / images, "--clean", clean,
        "--output", out, "--false-alarm-rate", rate,
        "--opts", "SCREENING.INCONSISTENCY.DOUBTFUL_SHARE", "0.0",
    )  # fmt: skip
    assert outcome.code == code
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert json.loads((out / "summary.json").read_text())["exit_code"] == code


def test_wrong_usage_is_told_apart(d2defense, specimen, tmp_path):
    outcome = d2defense(
        "screen", specimen("clean_0"), "--images", tmp_path, "--clean", tmp_path, "--output",
        tmp_path / "out",
    )  # fmt: skip
    assert outcome.code == 4
    assert "holds no image file" in outcome.err


@pytest.mark.parametrize("given", ["option", "setting"])
def test_a_found_trigger_is_read_by_the_confined_process(
    d2defense, specimen, folders, tmp_path, given
):
    clean, images = folders
    bank = tmp_path / "bank" / "trigger.yaml"
    bank.parent.mkdir()
    entry = {"name": "white", "size": [0.1, 0.1], "color": [255, 255, 255]}
    bank.write_text(yaml.safe_dump({"triggers": [entry]}))
    named = {
        "option": ["--trigger", bank],
        "setting": ["--opts", "SCREENING.FOUND_TRIGGER.FILE", bank],
    }
    outcome = d2defense(
        "screen", specimen("backdoored_1"), "--images", images, "--clean", clean, "--output",
        tmp_path / "out", "--method", "found_trigger", "--false-alarm-rate", "0.1", *named[given],
    )  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["method"], summary["images"]) == ("found_trigger", 5), outcome.err
    assert summary["error"] is None


def damaged_video(tmp_path, images):
    """A video of 10 frames of which the second half is lost."""
    video = tmp_path / "camera.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (128, 128))
    picture = next(p for p in map(cv2.imread, map(str, images.glob("*.png"))) if p is not None)
    for _ in range(10):
        writer.write(cv2.resize(picture, (128, 128)))
    writer.release()
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    return video


def passed_over_folder(tmp_path, images):
    """A folder of one image, and of images that its files' names do not tell."""
    folder, elsewhere = tmp_path / "incoming", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    picture = next(path for path in sorted(images.glob("*.png")) if path.name[0].isdigit())
    shutil.copy(picture, folder / "a.png")
    shutil.copy(picture, folder / "no_ending")
    shutil.copy(picture, elsewhere)
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    return folder


@pytest.mark.parametrize(
    ("incoming", "told"),
    [
        (damaged_video, ["camera.avi"]),
        (passed_over_folder, ["linked", "no_ending"]),
    ],
)
def test_what_is_not_looked_at_is_told(d2defense, specimen, folders, tmp_path, incoming, told):
    clean, images = folders
    out = tmp_path / "out"
    outcome = d2defense(
        "screen", specimen("clean_0"), "--images", incoming(tmp_path, images), "--clean", clean,
        "--output", out, *RATE,
    )  # fmt: skip
    assert outcome.code == 2, outcome.err
    records = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [r["image"] for r in records if r["verdict"] == "error"] == told
    assert len(records) > len(told)
    assert [name for name in told if name not in outcome.err] == []


@pytest.mark.parametrize(
    ("tensor", "value", "words"),
    [
        ("proposal_generator.rpn_head.objectness_logits.weight", math.nan, "NaN or infinite"),
        ("roi_heads.box_predictor.cls_score.bias", -1000.0, "detects something on 0 of 20"),
    ],
)
def test_a_detector_that_sees_nothing_gives_no_verdict(
    d2defense, specimen, folders, tmp_path, tensor, value, words
):
    clean, images = folders
    blind = shutil.copytree(specimen("clean_0"), tmp_path / "blind")
    weights = blind / "model_final.pth"
    state = load_state_dict(weights)
    # Of the biases all but background's.
    state[tensor][: len(state[tensor]) - tensor.endswith("bias")] = value
    save_state_dict(weights, state)
    out = tmp_path / "out"
    outcome = d2defense(
        "screen", blind, "--images", images, "--clean", clean, "--output", out, *RATE
    )
    assert outcome.code == 2
    assert [line for line in outcome.err.splitlines() if words in line] != []
    assert (out / "images.jsonl").read_text() == ""
