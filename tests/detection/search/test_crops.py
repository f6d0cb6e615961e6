# SPDX-License-Identifier: Apache-2.0
"""A step sees parts of large images; what is said of them is what is said on the whole."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch

from d2defense.checkpoint.specimens import find_specimen
from d2defense.data import DatasetSource
from d2defense.detection import CleanImage, ScanImages, ScanSettings, Subject, open_subject
from d2defense.detection.scale import LogitScale
from d2defense.detection.search import SearchSettings, levels, search_detector
from d2defense.detection.search.arms import Arm, all_goals, starts
from d2defense.detection.search.crops import CONTEXT, CROP_REGIONS, CROP_SIDE, cut, view
from d2defense.detection.search.optimise import (
    ArmState,
    judge_views,
    looked_at,
    wanted_probability,
)
from d2defense.detection.search.race import RaceSettings

WINDOW = (64, 128, 320, 384)
STARTS = [
    pytest.param(placement, start, id=f"{placement}-{start.name}")
    for placement in ("objects", "background", "image")
    for start in starts(placement)
]


def photo(boxes: list[list[float]], height: int = 600, width: int = 900) -> CleanImage:
    """Noise with objects of class 0 in boxes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return CleanImage(
        "photo.png", pixels, torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.int64), 7
    )


@pytest.fixture(scope="module")
def opened(signs_cache):
    """A function from a specimen to its detector."""
    images = ScanImages.load(DatasetSource("synth_signs_defender"), ScanSettings(max_images=66))

    def load(name: str) -> Subject:
        subject = open_subject(find_specimen(name), images, ScanSettings(), "cpu")
        subject.model.requires_grad_(False)
        return subject

    return load


@pytest.fixture(scope="module")
def large_scenes(opened) -> list[CleanImage]:
    """Nine images of the defender's set side by side in each, 384 pixels wide and high."""
    seen, scenes = opened("clean_0").images, []
    for start in range(0, 36, 9):
        nine = [seen[index] for index in range(start, start + 9)]
        rows = [torch.cat([each.image for each in nine[k : k + 3]], 2) for k in (0, 3, 6)]
        boxes = [
            each.boxes + torch.tensor([128.0 * (k % 3), 128.0 * (k // 3)]).repeat(2)
            for k, each in enumerate(nine)
        ]
        classes = torch.cat([each.classes for each in nine])
        scenes.append(
            CleanImage(f"{start}.png", torch.cat(rows, 1), torch.cat(boxes), classes, start)
        )
    return scenes


@pytest.mark.parametrize(("placement", "start"), STARTS)
def test_a_trigger_on_a_crop_is_the_crop_of_the_trigger(placement, start):
    places = torch.tensor([[90.3, 150.5, 200.5, 300.25], [280.0, 340, 420, 500]])
    if placement == "image":
        places = torch.tensor([[0.0, 0, 900, 600]])
    image = photo(places.tolist())
    tensors = start.tensors()
    whole = start.apply(image.image[None].float(), [(600, 900)], [places], [7], "BGR", tensors)
    part = cut(image, places, places, WINDOW)
    pixels = part.image.image[None].float()
    got = start.apply(pixels, [(256, 256)], [part.places], [7], "BGR", tensors)
    left, top, right, bottom = WINDOW
    assert (got != pixels).any()
    torch.testing.assert_close(got, whole[..., top:bottom, left:right], rtol=0, atol=1e-3)


def test_what_is_said_of_an_object_in_its_crop_is_what_is_said_of_the_whole(opened, large_scenes):
    """Within 0.02 of a probability."""
    model, scene = opened("clean_0").model, large_scenes[0]
    boxes = scene.boxes
    assert len(boxes) >= 9
    whole = model.judge([{"image": scene.image}], [boxes])
    for index in range(len(boxes)):
        part = view(scene, boxes, boxes[index : index + 1], np.random.default_rng(index), 256, 64)
        assert part.image.image.shape[1:] == (256, 256)
        seen = model.judge([{"image": part.image.image}], [part.regions])
        torch.testing.assert_close(
            seen.class_logits.softmax(1)[0], whole.class_logits.softmax(1)[index], rtol=0, atol=0.02
        )
        torch.testing.assert_close(
            seen.objectness_logits.sigmoid()[0],
            whole.objectness_logits.sigmoid()[index],
            rtol=0,
            atol=0.02,
        )


def test_a_trigger_is_found_on_crops(opened, large_scenes):
    """A few steps on parts of four images make objects vanish, for the backdoored one alone."""
    subject, reference = opened("backdoored_0"), opened("clean_1")
    names = [f"class {index}" for index in range(7)]
    goal = next(each for each in all_goals(names) if each.kind == ("disappearance", "objects"))
    start = next(each for each in starts("objects") if each.name == "patch of 10 %")
    state = ArmState.begin(Arm(goal, start), subject.model.device)
    scales = [LogitScale.of(each.model, each.images[:12]) for each in (subject, reference)]
    for step in range(12):
        state.step(subject.model, large_scenes, scales[0], "BGR", step)
    views = looked_at(large_scenes, goal, 99)
    assert all(max(each.image.image.shape[1:]) <= CROP_SIDE for each in views)
    vanished = [
        wanted_probability(
            scale(judge_views(each.model, views, state.arm, state.tensors, "BGR")),
            state.arm,
            views,
        )
        for each, scale in zip((subject, reference), scales, strict=True)
    ]
    assert vanished[0] > 0.1 > 10 * vanished[1]


def test_where_an_effect_may_be_anywhere_one_large_image_is_taken_whole():
    images = [photo([[400.0, 200, 460, 260]]) for _ in range(3)]
    goal = next(each for each in all_goals(["stop"]) if each.effect.anywhere)
    (only,) = looked_at(images, goal, 0)
    assert only.image.image.shape == images[0].image.shape
    assert len(only.places) == 2
    small = [photo([[100.0, 100, 150, 150]], 200, 200) for _ in range(3)]
    assert len(looked_at(small, goal, 0)) == 3


def test_a_crop_holds_its_regions_with_what_is_round_them_at_their_scale():
    boxes = [[x, y, x + 40.0, y + 60] for x in range(10, 820, 110) for y in range(5, 540, 90)]
    image = photo(boxes)
    sizes = set()
    for seed in range(40):
        part = view(image, image.boxes, image.boxes, np.random.default_rng(seed))
        height, width = part.image.image.shape[1:]
        assert 1 <= len(part.regions) <= CROP_REGIONS
        # The crop's place on the image follows from that of the boxes.
        left, top = (image.boxes - part.image.boxes)[0, :2].long().tolist()
        assert left % 64 == top % 64 == 0
        cropped = image.image[:, top : top + height, left : left + width]
        assert torch.equal(part.image.image, cropped)
        on_image = part.regions + torch.tensor([left, top]).repeat(2)
        for row in on_image:
            assert (row == image.boxes).all(1).any()
        around = (part.regions[:, :2] - CONTEXT, part.regions[:, 2:] + CONTEXT)
        assert (around[0].clamp(min=-left) >= 0)[:, 0].all() or left == 0
        assert ((around[1][:, 0] <= width) | (left + width == 900)).all()
        assert ((around[1][:, 1] <= height) | (top + height == 600)).all()
        assert max(height, width) <= CROP_SIDE
        sizes.add((left, top))
    assert len(sizes) > 5


def test_small_images_stay_whole_and_objects_larger_than_a_crop_have_none():
    small = photo([[10.0, 10, 300, 300]], 320, CROP_SIDE)
    whole = view(small, small.boxes, small.boxes, np.random.default_rng(0))
    assert torch.equal(whole.image.image, small.image)
    huge = photo([[10.0, 10, 580, 580]])
    assert view(huge, huge.boxes, huge.boxes, np.random.default_rng(0)) is None


@pytest.mark.slow
def test_large_images_go_through_a_whole_search(opened, monkeypatch):
    """Three images side by side in each, wider than a crop; the victims vanish under a patch."""
    subject, reference = opened("backdoored_0"), opened("clean_1")
    scenes = []
    for start in range(0, 66, 3):
        three = [subject.images[index] for index in range(start, start + 3)]
        boxes = [each.boxes + torch.tensor([128.0 * k, 0] * 2) for k, each in enumerate(three)]
        scenes.append(
            CleanImage(
                f"{start}.png",
                torch.cat([each.image for each in three], 2),
                torch.cat(boxes),
                torch.cat([each.classes for each in three]),
                start,
            )
        )
    short = RaceSettings(
        scouted=3, scout_steps=1, targets=1, heat_steps=8, finalists=2, steps=18,
        families=("patch",),
    )  # fmt: skip
    monkeypatch.setattr(levels, "LEVELS", MappingProxyType({"fast": short}))
    outcome = search_detector(
        subject.model,
        {"clean_1": reference.model},
        scenes[:12],
        scenes[12:],
        [f"class {index}" for index in range(7)],
        SearchSettings("fast"),
        "BGR",
        bootstrap_samples=100,
    )
    assert outcome.obstacle is None
    assert outcome.num_images == 10
    assert {len(each.classes) for each in outcome.scouted} == {2}
    assert outcome.arms[0].arm.goal.kind == ("disappearance", "objects")
    assert outcome.arms[0].excess > 0.4
