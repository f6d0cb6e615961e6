# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from d2defense.checkpoint import build_detector
from d2defense.detection import observe, observe_batches, stamped
from d2defense.modeling import BatchSize
from d2defense.statistics import STATISTICS, Observation, ObservationSettings
from d2defense.triggers import Patch, visible_rectangles

WHITE = Patch("white")
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


def by_hand(model, image, pixels, settings) -> dict:
    """(sum, count) of one image's statistics, as loops over stock modules' outputs."""
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
    probabilities = torch.softmax(logits.double(), 1).tolist()
    q = [1 - math.exp(row[-1]) / math.fsum(map(math.exp, row)) for row in logits.double().tolist()]
    s = [abs(a - b) for a, b in zip(p, q, strict=True)]
    top = s[: settings.topk]
    significant = [value for value in top if value > settings.epsilon]
    confident = [a - b for a, b in zip(p, q, strict=True) if a > settings.objectness_floor]
    histogram = np.histogram(top, bins=settings.num_bins, range=(0, 1))[0].tolist()
    max_p, max_q, gap, true_class, was_found = [], [], [], [], []
    for target, kind in zip(image.boxes.tolist(), image.classes.tolist(), strict=True):
        matched = [i for i, box in enumerate(boxes) if iou(box, target) >= settings.iou_threshold]
        max_p.append(max((p[i] for i in matched), default=0))
        max_q.append(max((q[i] for i in matched), default=0))
        gap += [max_p[-1] - max_q[-1]] if matched else []
        if kind >= 0:
            true_class.append(max((probabilities[i][kind] for i in matched), default=0))
        was_found.append(
            any(
                iou(box, target) >= 0.5 and score >= 0.5 and (c == kind or kind < 0)
                for box, score, c in zip(
                    found.pred_boxes.tensor.tolist(),
                    found.scores.tolist(),
                    found.pred_classes.tolist(),
                    strict=True,
                )
            )
        )
    alone = [
        q[i] > 0.5 and all(iou(box, target) < 0.1 for target in image.boxes.tolist())
        for i, box in enumerate(boxes)
    ]
    terms = {
        "tau": significant,
        "confident_d": confident,
        "gap": gap,
        "objects_found": was_found,
        "max_objectness": max_p,
        "max_foreground": max_q,
        "true_class": true_class,
    }
    sums = {name: (sum(values), len(values)) for name, values in terms.items()}
    return sums | {"unmatched_foreground": (sum(alone), 1), "histogram": histogram}


@pytest.mark.parametrize("trigger", [None, WHITE], ids=["clean", "white"])
@pytest.mark.parametrize("known", [True, False], ids=["classes known", "classes unknown"])
def test_observation_is_what_a_loop_over_images_gives(
    lively_detector, clean_images, trigger, known
):
    images = clean_images(3)[:]
    if not known:
        unknown = [torch.full_like(image.classes, -1) for image in images]
        images = [
            dataclasses.replace(i, classes=classes)
            for i, classes in zip(images, unknown, strict=True)
        ]
    seen = observe(lively_detector, images, trigger, SETTINGS, "BGR")
    expected = []
    for image in images:
        pixels = image.image.clone()
        if trigger:
            size = tuple(pixels.shape[1:])
            pixels = trigger.apply(pixels[None], [size], [image.boxes], [image.seed])[0]
        expected.append(by_hand(lively_detector, image, pixels, SETTINGS))
    assert set(seen.terms) == set(STATISTICS) == set(expected[0]) - {"histogram"}
    for name, terms in seen.terms.items():
        sums, counts = zip(*(image[name] for image in expected), strict=True)
        np.testing.assert_allclose(terms.numerator, sums, rtol=1e-4, atol=1e-4)
        assert terms.denominator.tolist() == list(counts)
        if name not in ("true_class", "objects_found"):
            assert terms.numerator.any()
    assert seen.terms["true_class"].numerator.any() == known
    histogram = np.sum([image["histogram"] for image in expected], axis=0)
    assert seen.histogram.tolist() == histogram.tolist()


def test_the_batch_size_and_other_triggers_make_no_difference(lively_detector, clean_images):
    images = clean_images(5)
    one = observe(
        lively_detector, images, WHITE, dataclasses.replace(SETTINGS, batch_size=1), "BGR"
    )
    batches = observe_batches(lively_detector, images, [None, WHITE], SETTINGS, "BGR")
    joined = Observation.join([batch.observations[1] for batch in batches])
    for name in STATISTICS:
        for ours, theirs in zip(one.terms[name], joined.terms[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.histogram, joined.histogram)


def test_images_of_all_shapes_go_together_with_their_like(lively_detector, clean_images):
    """What is said of an image depends neither on the others nor on the memory there is."""
    square, *_ = clean_images(4)
    wide, high = (
        dataclasses.replace(square, image=square.image[:, :height, :width].clone())
        for height, width in ((96, 128), (128, 96))
    )
    images = [square, wide, high, wide, square, high]
    passes = []
    batch_size = BatchSize(lively_detector, 16)
    batches = list(
        observe_batches(
            lively_detector,
            images,
            [None, WHITE],
            SETTINGS,
            "BGR",
            on_pass=passes.append,
            batch_size=batch_size,
        )
    )
    assert sum(batch.images for batch in batches) == len(images)
    assert sum(passes) == 2 * len(images)
    assert batch_size.used == 2
    together = Observation.join([batch.observations[1] for batch in batches])
    apart = [observe(lively_detector, [image], WHITE, SETTINGS, "BGR") for image in images]
    expected = Observation.join([apart[index] for index in (0, 4, 1, 3, 2, 5)])
    for name in STATISTICS:
        for ours, theirs in zip(together.terms[name], expected.terms[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_kept_does_not_grow_with_the_proposals(lively_detector, clean_images):
    """A scan keeps two numbers an image and statistic, however many boxes there are."""
    images = clean_images(4)
    for count in (5, 500):
        lively_detector.proposal_generator.post_nms_topk[False] = count
        seen = observe(lively_detector, images, None, SETTINGS, "BGR")
        kept = [tensor for terms in seen.terms.values() for tensor in terms]
        assert all(tensor.shape == (4,) for tensor in kept)
        assert all(tensor.untyped_storage().nbytes() == 4 * 8 for tensor in kept)
        assert seen.histogram.shape == (SETTINGS.num_bins,)


def test_stamping_leaves_the_clean_image_clean(clean_images):
    (image,) = clean_images(1)
    before = image.image.clone()
    assert stamped(image, None, "BGR") is image.image
    changed = (stamped(image, WHITE, "BGR") != before).any(dim=0)
    assert torch.equal(image.image, before)
    inside = torch.zeros_like(changed)
    for x0, y0, x1, y1 in visible_rectangles(WHITE, image.boxes, tuple(changed.shape)).tolist():
        inside[y0:y1, x0:x1] = True
    assert changed.any()
    assert not (changed & ~inside).any()


def test_classes_that_the_model_does_not_know_are_unknown(lively_detector, clean_images):
    images = [dataclasses.replace(image, classes=image.classes + 50) for image in clean_images(1)]
    seen = observe(lively_detector, images, None, SETTINGS, "BGR")
    assert math.isnan(seen.terms["true_class"].ratio())


def test_a_detector_that_proposes_nothing_can_be_observed(lively_detector, clean_images):
    with torch.no_grad():
        lively_detector.proposal_generator.rpn_head.objectness_logits.bias.fill_(math.nan)
    seen = observe(lively_detector, clean_images(2), None, SETTINGS, "BGR")
    assert seen.terms["max_foreground"].ratio() == 0
    assert seen.terms["objects_found"].ratio() == 0


def test_half_precision_changes_statistics_little(specimen, clean_images):
    folder = specimen("backdoored_0")
    model, cfg = build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")
    images = clean_images(6)
    trigger = Patch("white")
    single, half = (
        observe(model, images, trigger, ObservationSettings(precision=precision), cfg.INPUT.FORMAT)
        for precision in ("fp32", "bf16")
    )
    for name in ("max_foreground", "max_objectness", "true_class"):
        expected = single.terms[name].ratio()
        assert half.terms[name].ratio() == pytest.approx(expected, abs=0.02)
    # But it was another computation.
    assert half.terms["max_foreground"].ratio() != single.terms["max_foreground"].ratio()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="precision fp8"):
        ObservationSettings(precision="fp8")
