# SPDX-License-Identifier: Apache-2.0
"""Every screening method: the same interface, the cost that it says, and its own formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml
from detectron2.structures import Boxes

from d2defense.config import get_d2defense_cfg
from d2defense.modeling import BoxFeatures, ProbeOutput
from d2defense.registry import SCREENING_REGISTRY
from d2defense.screening import FitError, SeenImage, build_method, see
from d2defense.screening.blending import blend, confidence, entropy, matched
from d2defense.screening.methods.inconsistency import _changes
from d2defense.screening.methods.trace import probe_places
from d2defense.screening.normality import Normality, Scale
from d2defense.screening.regions import Regions, regions_of, shared_part
from d2defense.screening.screen import CleanPasses

# So small that every method is fitted within seconds.
SMALL = [
    "SCREENING.TRACE.BACKGROUNDS", 2, "SCREENING.TRACE.QUERIES", 2, "SCREENING.TRACE.PROBES", 2,
    "SCREENING.STRIP.BLENDS", 2, "SCREENING.DETECTOR_CLEANSE.FEATURES", 2,
]  # fmt: skip


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "trigger.yaml"
    entry = {"name": "white", "size": [0.1, 0.1], "color": [255, 255, 255]}
    path.write_text(yaml.safe_dump({"triggers": [entry]}))
    return path


def settings(bank, *opts):
    cfg = get_d2defense_cfg()
    cfg.merge_from_list([*SMALL, "SCREENING.FOUND_TRIGGER.FILE", str(bank), *opts])
    return cfg


@pytest.mark.parametrize("name", SCREENING_REGISTRY.choices())
def test_every_method_is_fitted_and_scores_an_image_and_its_places(name, bank, opened, scenes):
    model, cfg = opened("backdoored_1")
    method = build_method(model, name, settings(bank))
    # The found trigger needs some places whose answer it changes.
    count = 24 if name in ("inconsistency", "found_trigger") else 6
    null = method.fit(CleanPasses(model, scenes(cfg, count)))
    assert null
    assert np.isfinite(null).all()
    passes = 0

    def counted(module, inputs, output):
        nonlocal passes
        passes += inputs[0].shape[0]

    _, (seen,) = see(model, scenes(cfg, 1, "synth_signs_val"))
    hook = model.backbone.register_forward_hook(counted)
    try:
        look = method.look(seen)
    finally:
        hook.remove()
    assert math.isfinite(look.score)
    assert look.boxes.shape == (len(look.scores), 4)
    if name == "inconsistency":  # crops, of which only their pixels count
        assert (look.passes > 1) == (passes > 0)
    else:
        assert look.passes == 1 + passes


def test_the_null_of_ours_is_of_images_that_nothing_was_learnt_from(opened, scenes):
    """Scores of the null and of further clean images are alike: no optimism of the fit."""
    model, cfg = opened("clean_1")
    method = build_method(model, "inconsistency")
    null = method.fit(CleanPasses(model, scenes(cfg, 30)))
    _, seen = see(model, scenes(cfg, 30, "synth_signs_val"))
    later = [method.look(each).score for each in seen]
    above = np.mean([score > np.quantile(null, 0.8) for score in later])
    assert 0.02 <= above <= 0.4


def test_a_second_look_is_taken_where_it_is_asked_for_and_nowhere_else(opened, scenes):
    model, cfg = opened("clean_1")
    _, seen = see(model, scenes(cfg, 4, "synth_signs_val"))
    passes = {}
    for share in (0.0, 1.0):
        node = get_d2defense_cfg()
        node.SCREENING.INCONSISTENCY.DOUBTFUL_SHARE = share
        method = build_method(model, "inconsistency", node)
        method.fit(CleanPasses(model, scenes(cfg, 20)))
        passes[share] = [method.look(each).passes for each in seen]
    assert set(passes[0.0]) == {1.0}
    assert np.mean(passes[1.0]) > 1.2


def test_a_found_trigger_that_does_nothing_is_told(bank, opened, scenes):
    model, cfg = opened("clean_0")
    method = build_method(model, "found_trigger", settings(bank))
    with pytest.raises(FitError, match="changes nothing"):
        method.fit(CleanPasses(model, scenes(cfg, 8)))


def test_a_found_trigger_needs_a_file(opened):
    with pytest.raises(ValueError, match=r"FOUND_TRIGGER\.FILE"):
        build_method(opened("clean_0")[0], "found_trigger")


def test_a_wrong_name_is_told_what_there_is(opened):
    with pytest.raises(ValueError, match=r"no screening method 'magic'; there are .*strip"):
        build_method(opened("clean_0")[0], "magic")


def seen_image(boxes, scores, classes, proposals, objectness, logits):
    """An image with these detections and proposals; features count the proposals."""
    count = len(proposals)
    probe = ProbeOutput(
        torch.tensor(proposals, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(objectness, dtype=torch.float32),
        (torch.tensor(logits, dtype=torch.float32),),
        torch.tensor([0, count]),
        [(100, 100)],
    )
    numbers = torch.arange(count).float()[:, None]
    return SeenImage(
        torch.zeros(3, 100, 100, dtype=torch.uint8),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(classes, dtype=torch.int64),
        probe,
        BoxFeatures(numbers, numbers),
    )


def test_regions_are_detections_with_their_proposals_and_what_touches_none():
    seen = seen_image(
        boxes=[[0, 0, 20, 20], [50, 50, 90, 90]],
        scores=[0.9, 0.3],
        classes=[1, 0],
        proposals=[
            [0, 0, 19, 19],
            [1, 1, 21, 21],
            [5, 5, 12, 12],
            [60, 0, 80, 20],
            [61, 0, 80, 20],
        ],
        objectness=[5.0, 4.0, 3.0, 2.0, 1.0],
        logits=[[1.0, 2.0, 0.0], [0.0, 5.0, 0.0], [0, 0, 9.0], [3.0, 0.0, 4.0], [0, 0, 9.0]],
    )
    regions = regions_of(seen, 0.5, 10, 10)
    assert regions.detected.tolist() == [True, False]
    assert regions.classes.tolist() == [1, 0]
    # The detection's proposal is the one surest of its class; what lies in it is no place.
    assert regions.pooled[:, 0].tolist() == [1.0, 3.0]
    assert regions.objectness.tolist() == [4.0, 2.0]
    assert regions.margins.tolist() == [5.0, -1.0]


def test_part_of_the_smaller_box():
    part = shared_part(
        torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 10, 10], [20, 20, 30, 30]])
    )
    assert part.tolist() == [[1.0, 0.0]]


def test_what_a_place_has_turned_into():
    fields = {name: torch.zeros(2, 1) for name in ("pooled", "classified")}
    regions = Regions(
        torch.zeros(2, 4), torch.tensor([True, False]), torch.tensor([0, 1]),
        torch.zeros(2), torch.zeros(2), **fields,
    )  # fmt: skip
    logits = torch.tensor([[[1.0, 4.0, 2.0]], [[3.0, 1.0, 5.0]]])
    # Detected as 0, now 1; unclaimed, and the likeliest class is still 2 below background.
    assert _changes(logits, regions).tolist() == [[3.0], [-2.0]]


def test_distances_are_those_of_a_gaussian_with_one_covariance():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    classes = torch.arange(4000) % 2
    means = np.array([[0, 0, 0], [9, 0, 0]])
    features = torch.tensor(rng.normal(size=(4000, 3)) @ mixing + means[classes])
    normal = Normality.of(features, classes)
    covariance = mixing.T @ mixing
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 3 * np.eye(3)
    rest = features[:5].numpy() - means[classes[:5]]
    expected = np.log1p(np.einsum("ni,ij,nj->n", rest, np.linalg.inv(shrunk), rest))
    assert normal(features[:5], classes[:5]).numpy() == pytest.approx(expected, rel=0.05, abs=0.05)


def test_a_scale_puts_the_middle_at_0_and_5_percent_above_1():
    values = torch.arange(1001.0)
    scaled = Scale.of(values)(values)
    assert scaled[500] == 0
    assert float((scaled > 1).double().mean()) == pytest.approx(0.05, abs=0.002)
    assert Scale.of(torch.zeros(5))(torch.tensor([3.0])).item() == 0


def test_blends_entropy_and_matches():
    black, white = (
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.full((3, 8, 8), 200, dtype=torch.uint8),
    )
    assert blend(black, white, 0.15).unique().tolist() == [30]
    assert entropy(torch.zeros(1, 4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([[50.0, 0, 0]])).item() == pytest.approx(0, abs=1e-6)
    seen = seen_image(
        [[0, 0, 10, 10], [0, 0, 10, 10]], [0.8, 0.6], [2, 1],
        [[0, 0, 10, 10], [0, 0, 9, 10]], [1.0, 1.0], [[0.0, 0.0], [3.0, 0.0]],
    )  # fmt: skip
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    assert matched(boxes, seen, torch.tensor([7.0, 8.0])).tolist() == [8.0, 0.0]
    assert confidence(boxes, torch.tensor([1, 1]), seen).tolist() == pytest.approx([0.6, 0.0])


def test_probes_do_not_touch():
    places = probe_places(np.random.default_rng(0), (100, 120), 12, 5)
    boxes = Boxes(torch.tensor([[x, y, x + 12, y + 12] for x, y in places], dtype=torch.float32))
    assert len(places) == 5
    overlap = shared_part(boxes.tensor, boxes.tensor)
    assert torch.equal(overlap, torch.eye(5))
    assert boxes.inside_box((100, 120)).all()


def test_boxes_are_in_pixels_of_the_networks_input(opened, scenes):
    model, cfg = opened("clean_0")
    (scene,) = scenes(cfg, 1)
    plain = see(model, [{"image": scene["image"]}])[1][0]
    scaled = see(model, [{"image": scene["image"], "height": 256, "width": 640}])[1][0]
    assert torch.allclose(plain.boxes, scaled.boxes, atol=1e-3)
