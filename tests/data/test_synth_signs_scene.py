# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from d2defense.data.synth_signs.layout import MAX_OVERLAP, draw_layout
from d2defense.data.synth_signs.scene import paint_sign, render_scene
from d2defense.data.synth_signs.shapes import SIGN_CLASSES, TEMPLATE_SIZES, template
from d2defense.data.synth_signs.splits import SPLITS, VERSION


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(VERSION, 5, index, 128) for index in range(150)]


def test_a_scene_depends_on_version_seed_and_index_alone():
    first = render_scene(1, 7, 3, 96)
    render_scene(1, 7, 4, 96)
    again = render_scene(1, 7, 3, 96)
    np.testing.assert_array_equal(first.image, again.image)
    assert str(first.objects) == str(again.objects)
    for other in (render_scene(2, 7, 3, 96), render_scene(1, 8, 3, 96), render_scene(1, 7, 4, 96)):
        assert (other.image != first.image).any()


def test_another_size_shows_the_same_scene():
    for index in range(8):
        small, large = (render_scene(VERSION, 5, index, size) for size in (128, 320))
        assert [o.class_index for o in small.objects] == [o.class_index for o in large.objects]
        for a, b in zip(small.objects, large.objects, strict=True):
            np.testing.assert_allclose(a.box / 128, b.box / 320, atol=0.02 / 128)
        shrunk = cv2.resize(large.image, (128, 128), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(shrunk - small.image).mean() < 8


def test_objects_keep_to_the_stated_counts_and_sizes(scenes):
    counts = [len(scene.objects) for scene in scenes]
    assert min(counts) == 1 and max(counts) == 6
    for scene in scenes:
        for item in scene.objects:
            sides = item.box[2:] - item.box[:2]
            assert (sides >= 0.12 * 128 - 0.02).all() and (sides <= 0.5 * 128).all()
            assert (item.box >= 0).all() and (item.box <= 128).all()
            assert item.area <= sides.prod()
    longest = [(o.box[2:] - o.box[:2]).max() / 128 for s in scenes for o in s.objects]
    assert np.mean((np.array(longest) > 0.15) & (np.array(longest) < 0.4)) > 0.75


def test_signs_overlap_a_little_and_some_do():
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(60):
        signs = draw_layout(rng, posts=0.5, light=1.0)
        for a, b in itertools.combinations([sign.box for sign in signs], 2):
            sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - sides.prod()
            overlaps.append(sides.prod() / union)
    assert max(overlaps) <= MAX_OVERLAP + 1e-9
    assert np.mean(np.array(overlaps) > 0.005) > 0.02


def test_every_class_occurs_about_equally_often(scenes):
    counts = np.bincount([o.class_index for s in scenes for o in s.objects])
    assert len(counts) == len(SIGN_CLASSES) >= 6
    assert counts.min() > 0.5 * counts.mean()


def test_a_sign_is_painted_where_its_outline_says():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:128, :128] + 0.5
    errors = []
    for sign in itertools.chain.from_iterable(draw_layout(rng, 0.0, 1.0) for _ in range(40)):
        black, white = (np.full((128, 128, 3), value, np.float32) for value in (0, 255))
        paint_sign(black, sign)
        paint_sign(white, sign)
        cover = 1 - (white - black)[..., 0] / 255
        moments = cv2.moments((sign.outline * 128).astype(np.float32))
        assert cover.sum() == pytest.approx(moments["m00"], rel=0.01)
        errors.append((cover * columns).sum() / cover.sum() - moments["m10"] / moments["m00"])
        errors.append((cover * rows).sum() / cover.sum() - moments["m01"] / moments["m00"])
    assert np.abs(errors).max() < 0.05  # pixels


@pytest.mark.parametrize("index", range(len(SIGN_CLASSES)))
def test_a_template_is_its_outline_and_nothing_but(index):
    side = TEMPLATE_SIZES[-1]
    picture = template(index, 0, side)
    mask = np.zeros((side, side), np.uint8)
    points = (SIGN_CLASSES[index].outline * (1 - 2 / 16) + 0.5) * side - 0.5
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, shift=4)
    assert np.abs(mask.astype(float) - picture[..., 3]).mean() < 1.5
    extent = SIGN_CLASSES[index].outline.max(axis=0) - SIGN_CLASSES[index].outline.min(axis=0)
    assert extent.max() == pytest.approx(1.0)


def test_a_white_patch_is_a_visible_change_at_the_centre_of_every_sign():
    for index, sign in enumerate(SIGN_CLASSES):
        for variant in range(sign.variants):
            picture = template(index, variant, 128)[..., :3].astype(float)
            side = round(0.1 * 128 * (1 - 2 / 16))
            low = 64 - side // 2
            centre = picture[low : low + side, low : low + side]
            assert (255 - centre).mean() > 50, (sign.name, variant)


def test_classes_differ_in_outline():
    def mask(sign):
        canvas = np.zeros((128, 128), np.uint8)
        cv2.fillPoly(canvas, [np.round((sign.outline + 0.5) * 127).astype(np.int32)], 1)
        return canvas > 0

    masks = [mask(sign) for sign in SIGN_CLASSES]
    for first, second in itertools.combinations(masks, 2):
        assert (first & second).sum() / (first | second).sum() < 0.97


def test_splits_have_seeds_of_their_own():
    assert len({split.seed for split in SPLITS.values()}) == len(SPLITS)
    assert {name: split.count for name, split in SPLITS.items()} == {
        "train": 2000,
        "defender": 200,
        "val": 300,
        "pool": 600,
    }
