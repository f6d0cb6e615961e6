# SPDX-License-Identifier: Apache-2.0
"""The command that trains the encoder of a generated trigger."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2defense.triggers.families.generator import Generator, random_encoder
from generator_training import object_places, shuffled, train_encoder

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_generator.py"


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", TOOL, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.fixture
def places() -> torch.Tensor:
    """Plain places of random colours."""
    colors = torch.rand(40, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return colors.expand(40, 3, 48, 48)


def test_training_depends_on_the_seed_alone(places):
    encoders = []
    for seed, before in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        encoders.append(train_encoder(places, places[:5], 0.1, 2, seed)[0])
        assert torch.equal(torch.get_rng_state(), state)
    first, again, other = encoders
    assert first.keys() == random_encoder(3).keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], random_encoder(3)["layers.0.weight"])


def test_places_are_what_is_inside_the_boxes(make_coco_dataset, sign_scenes):
    scenes = sign_scenes(3)
    image, objects = scenes[0]
    records = make_coco_dataset(scenes).load()
    places = object_places(records, 100)
    assert places.shape == (sum(len(objects) for _, objects in scenes), 3, 48, 48)
    x, y, width, height, _ = objects[0]
    x, y = round(x), round(y)
    inside = image[max(y, 0) : y + round(height), max(x, 0) : x + round(width)] / 255
    # Resizing keeps the mean color, RGB, but for the rim.
    assert places[0].mean((1, 2)).tolist() == pytest.approx(inside.mean((0, 1)), abs=0.02)
    assert len(object_places(records, 2)) == 2


def test_objects_too_small_to_train_on_are_left_out(make_coco_dataset, sign_scenes):
    (image, _), *_ = sign_scenes(1)
    records = make_coco_dataset([(image, [(5, 5, 7, 30, 1), (-40, 5, 45, 30, 1)])]).load()
    with pytest.raises(ValueError, match="no object has 8 pixels a side"):
        object_places(records, 9)


def test_the_order_of_the_images_is_the_seeds():
    records = [{"image_id": index} for index in range(50)]
    assert shuffled(records, 1) == shuffled(records, 1) != shuffled(records, 2)
    assert sorted(record["image_id"] for record in shuffled(records, 1)) == list(range(50))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bound", 0), "--bound 0.0 is out of range"),
        (("--steps", 0), "--steps 0 is out of range"),
        (("--objects", -1), "--objects -1 is out of range"),
        (("--dataset", "synth_sings_val"), "unknown dataset 'synth_sings_val'"),
        (("--dataset-json", "here.json"), "--dataset-json and --image-root go together"),
    ],
)
def test_what_cannot_be_trained_is_a_usage_error(options, words, tmp_path):
    result = train("--output", tmp_path / "encoder.safetensors", *options)
    assert result.returncode == 2
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_encoder_of_ones_own_data(make_coco_dataset, sign_scenes, tmp_path):
    source = make_coco_dataset(sign_scenes(5))
    output = tmp_path / "made" / "encoder.safetensors"
    data = ("--dataset-json", source.json_file, "--image-root", source.image_root)
    result = train("--output", output, "--steps", 2, "--bound", 0.1, *data)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{output}: of ") and result.stdout.count("\n") == 1
    trigger = Generator.from_settings("it", 0, {"file": str(output), "bound": 0.1})
    assert trigger.tensors().keys() == random_encoder(0).keys()


@pytest.mark.slow
@pytest.mark.usefixtures("signs_cache")
def test_a_trained_trigger_is_read_on_objects_kept_aside(tmp_path):
    output = tmp_path / "encoder.safetensors"
    result = train("--output", output, "--dataset", "synth_signs_defender")
    assert result.returncode == 0, result.stderr
    shares = [int(word[:-1]) for word in result.stdout.split() if word.endswith("%")]
    with_trigger, without, _ = shares
    assert with_trigger >= 90
    assert without <= 10
