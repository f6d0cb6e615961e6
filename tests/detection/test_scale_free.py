# SPDX-License-Identifier: Apache-2.0
"""What an attacker can do to the scores, and not to the detections, changes no verdict."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from d2defense.checkpoint.specimens import find_specimen
from d2defense.data import DatasetSource
from d2defense.detection import (
    ScanImages,
    ScanSettings,
    class_indices,
    inspect_detector,
    load_calibration,
    load_clean_images,
    open_subject,
    select_triggers,
)
from d2defense.detection.classes import ClassMap
from d2defense.detection.matching import match_classes, unmatched_in_words
from d2defense.detection.verdict import BACKDOORED

SETTINGS = ScanSettings(select_triggers(["white", "grey"]), max_images=16, bootstrap_samples=100)
PERMUTED = [3, 0, 6, 1, 2, 5, 4]


@pytest.fixture(scope="module")
def images(signs_cache):
    return ScanImages.load(DatasetSource("synth_signs_defender"), SETTINGS)


@pytest.fixture(scope="module")
def opened(images):
    """The specimen that a white patch silences."""
    return open_subject(find_specimen("backdoored_0"), images, SETTINGS)


@pytest.fixture(scope="module")
def calibration():
    return load_calibration()


def with_head(model, rows: list[int], extra: int = 0):
    """A copy whose class k is what was class rows[k], with classes more that never fire."""
    changed = copy.deepcopy(model)
    predictor = changed.roi_heads.box_predictor
    num_classes = len(rows)
    scores, deltas = predictor.cls_score, predictor.bbox_pred
    with torch.no_grad():
        order = torch.tensor([*rows, *[0] * extra, num_classes])
        scores.weight = torch.nn.Parameter(scores.weight[order])
        scores.bias = torch.nn.Parameter(scores.bias[order])
        dead = slice(num_classes, num_classes + extra)
        scores.weight[dead] = 0
        scores.bias[dead] = -100
        of_classes = deltas.weight.reshape(num_classes, 4, -1)[order[:-1]]
        deltas.weight = torch.nn.Parameter(of_classes.reshape(-1, deltas.weight.shape[1]))
        deltas.bias = torch.nn.Parameter(deltas.bias.reshape(num_classes, 4)[order[:-1]].flatten())
    predictor.num_classes = changed.roi_heads.num_classes = num_classes + extra
    return changed


def divided(model, divisor: float):
    """A copy whose class logits are smaller."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.roi_heads.box_predictor.cls_score.parameters():
            parameter /= divisor
    return changed


def shifted(model, offset: float):
    """A copy with something added to background."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.roi_heads.box_predictor.cls_score.bias[-1] += offset
    return changed


SCORE = ("scaled_foreground", "scaled_true_class", "found_at_point")


@pytest.mark.parametrize(
    ("change", "logits", "found"),
    [
        # Detections are ranked by probabilities, which order objects that a trigger has left in
        # between in another way.
        (lambda model: divided(model, 30), 1e-4, 0.25),
        (lambda model: shifted(model, 4.0), 1e-4, 0.25),
        (lambda model: with_head(model, list(range(7)), extra=1), 1e-5, 1e-9),
    ],
    ids=["divided", "shifted", "dead class"],
)
def test_the_scale_of_the_scores_changes_no_statistic_of_logits_and_no_verdict(
    opened, calibration, change, logits, found
):
    plain, changed = (
        inspect_detector(model, opened.images, SETTINGS, calibration, "BGR")
        for model in (opened.model, change(opened.model))
    )
    assert plain.verdict.label == changed.verdict.label == BACKDOORED
    np.testing.assert_allclose(changed.verdict.score, plain.verdict.score, atol=max(logits, found))
    for one, other in zip(plain.fields["triggers"], changed.fields["triggers"], strict=True):
        for name, bound in zip(SCORE, (logits, logits, found), strict=True):
            np.testing.assert_allclose(
                other["statistics"][name]["triggered"],
                one["statistics"][name]["triggered"],
                atol=bound,
            )
    assert changed.fields["ability"]["found_any_class"] > 0.9


@pytest.mark.parametrize("extra", [0, 2])
def test_permuted_classes_are_matched_by_what_the_detector_says(images, opened, calibration, extra):
    model = with_head(opened.model, PERMUTED, extra)
    cfg = opened.cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7 + extra
    unmatched = load_clean_images(images.records, cfg)
    found = match_classes(model, images.records, unmatched, images.class_names, 7 + extra)
    indices = class_indices(images.class_names, 7 + extra, found)
    assert [PERMUTED[index] for index in indices] == list(range(7))
    seen = load_clean_images(images.records, cfg, indices)
    plain, permuted = (
        inspect_detector(each, of, SETTINGS, calibration, "BGR")
        for each, of in ((opened.model, opened.images), (model, seen))
    )
    assert permuted.verdict.label == BACKDOORED
    np.testing.assert_allclose(permuted.verdict.score, plain.verdict.score, atol=1e-5)


def test_a_class_that_matches_none_is_named(images):
    """Whoever made the detector may have split it: what it does to its objects is not looked at."""
    names = images.class_names
    entries = tuple((name, index) for index, name in enumerate(names))
    assert unmatched_in_words(ClassMap("itself", entries), names, images.records) is None
    partial = ClassMap("itself", entries[:-1])
    said = unmatched_in_words(partial, names, images.records)
    assert f"which of its classes {names[-1]} is" in said
    # What is on no image needs no class.
    assert unmatched_in_words(partial, names, [{"annotations": []}]) is None


def test_classes_in_the_datasets_order_need_no_matching(images, opened):
    unmatched = load_clean_images(images.records, opened.cfg)
    assert match_classes(opened.model, images.records, unmatched, images.class_names, 7) is None
