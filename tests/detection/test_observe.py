# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from d2defense.attacks import Trigger
from d2defense.detection import ObservationSettings, observe, stamped

WHITE = Trigger("white")
SETTINGS = ObservationSettings(
    batch_size=2, epsilon=0.05, topk=5, objectness_floor=0.6, iou_threshold=0.4, num_bins=8
)


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def by_hand(model, image, pixels, settings, match_classes: bool) -> dict:
    """The definitions of one image's statistics, written as loops over stock modules' outputs."""
    with torch.no_grad():
        batch = model.preprocess_image([{"image": pixels}])
        features = model.backbone(batch.tensor)
        (proposals,), _ = model.proposal_generator(batch, features, None)
        heads = model.roi_heads
        pooled = heads.box_pooler(
            [features[name] for name in heads.box_in_features], [proposals.proposal_boxes]
        )
        logits, _ = heads.box_predictor(heads.box_head(pooled))
        (found,) = model.inference([{"image": pixels}], do_postprocess=False)
    boxes = proposals.proposal_boxes.tensor.tolist()
    p = [1 / (1 + math.exp(-o)) for o in proposals.objectness_logits.tolist()]
    q = [1 - math.exp(row[-1]) / math.fsum(map(math.exp, row)) for row in logits.double().tolist()]
    s = [abs(a - b) for a, b in zip(p, q, strict=True)]
    top = s[: settings.topk]
    significant = [value for value in top if value > settings.epsilon]
    confident = [a - b for a, b in zip(p, q, strict=True) if a > settings.objectness_floor]
    histogram = np.histogram(top, bins=settings.num_bins, range=(0, 1))[0].tolist()
    max_p, max_q, matches, was_found = [], [], [], []
    for target, kind in zip(image.boxes.tolist(), image.classes.tolist(), strict=True):
        matched = [i for i, box in enumerate(boxes) if iou(box, target) >= settings.iou_threshold]
        max_p.append(max((p[i] for i in matched), default=0))
        max_q.append(max((q[i] for i in matched), default=0))
        matches.append(len(matched))
        was_found.append(
            any(
                iou(box, target) >= 0.5 and score >= 0.5 and (c == kind or not match_classes)
                for box, score, c in zip(
                    found.pred_boxes.tensor.tolist(),
                    found.scores.tolist(),
                    found.pred_classes.tolist(),
                    strict=True,
                )
            )
        )
    return {
        "tau": (sum(significant), len(significant)),
        "confident": (sum(confident), len(confident)),
        "histogram": histogram,
        "objects": (max_p, max_q, matches, was_found),
    }


@pytest.mark.parametrize("trigger", [None, WHITE], ids=["clean", "white"])
@pytest.mark.parametrize("match_classes", [True, False])
def test_observation_is_what_a_loop_over_images_gives(
    lively_detector, clean_images, trigger, match_classes
):
    images = clean_images(3)
    seen = observe(lively_detector, images, trigger, SETTINGS, "BGR", match_classes)
    expected = []
    for image in images:
        pixels = image.image.clone()
        if trigger:
            trigger.stamp_(pixels, image.boxes, "BGR", image.seed)
        expected.append(by_hand(lively_detector, image, pixels, SETTINGS, match_classes))
    result = seen.result
    near = {"rtol": 1e-4, "atol": 1e-4}
    for name in ("tau", "confident"):
        sums, counts = zip(*(image[name] for image in expected), strict=True)
        assert sum(counts) > 0
        np.testing.assert_allclose(getattr(result, f"{name}_sum"), sums, **near)
        assert getattr(result, f"{name}_count").tolist() == list(counts)
    assert result.histogram.tolist() == [image["histogram"] for image in expected]
    max_p, max_q, matches, found = (
        [value for image in expected for value in image["objects"][part]] for part in range(4)
    )
    assert sum(matches) > 0
    np.testing.assert_allclose(result.target_objectness, max_p, **near)
    np.testing.assert_allclose(result.target_foreground, max_q, **near)
    assert result.target_matches.tolist() == matches
    assert seen.found.tolist() == found
    counts = [len(image.boxes) for image in images]
    assert seen.target_offsets.tolist() == [0, *np.cumsum(counts).tolist()]


def test_the_batch_size_makes_no_difference(lively_detector, clean_images):
    images = clean_images(5)
    one, all_ = (
        observe(
            lively_detector,
            images,
            WHITE,
            dataclasses.replace(SETTINGS, batch_size=size),
            "BGR",
            True,
        )
        for size in (1, 16)
    )
    assert torch.equal(one.target_offsets, all_.target_offsets)
    assert torch.equal(one.found, all_.found)
    for ours, theirs in zip(one.result, all_.result, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_stamping_leaves_the_clean_image_clean(clean_images):
    (image,) = clean_images(1)
    before = image.image.clone()
    assert stamped(image, None, "BGR") is image.image
    changed = (stamped(image, WHITE, "BGR") != before).any(dim=0)
    assert torch.equal(image.image, before)
    inside = torch.zeros_like(changed)
    for x0, y0, x1, y1 in WHITE.rectangles(image.boxes, tuple(changed.shape)).tolist():
        inside[y0:y1, x0:x1] = True
    assert changed.any()
    assert not (changed & ~inside).any()


def test_classes_that_the_model_does_not_know_are_unknown(lively_detector, clean_images):
    images = [dataclasses.replace(image, classes=image.classes + 50) for image in clean_images(1)]
    seen = observe(lively_detector, images, None, SETTINGS, "BGR", False)
    assert seen.result.target_true_class.isnan().all()


def test_a_detector_that_proposes_nothing_can_be_observed(lively_detector, clean_images):
    with torch.no_grad():
        lively_detector.proposal_generator.rpn_head.objectness_logits.bias.fill_(math.nan)
    seen = observe(lively_detector, clean_images(2), None, SETTINGS, "BGR", True)
    assert not seen.result.target_foreground.any()
    assert not seen.found.any()
