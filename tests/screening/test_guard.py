# SPDX-License-Identifier: Apache-2.0
"""A guarded detector detects as before, says what is suspicious, and may be shared by threads."""

from __future__ import annotations

import gc
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.modeling import instrument_config
from d2defense.screening import (
    SUSPICION,
    FitError,
    Guard,
    ImageLook,
    ScoreNull,
    Screen,
    Suspicion,
)
from d2defense.screening.methods.base import ScreeningMethod, look_of_boxes

RATE = 0.05
CLEAN = 24


def assert_same(ours, theirs) -> None:
    assert ours.get_fields().keys() == theirs.get_fields().keys()
    for name, value in theirs.get_fields().items():
        value, got = (getattr(v, "tensor", v) for v in (value, ours.get(name)))
        assert torch.equal(got, value), name


@pytest.fixture(scope="module")
def guarded(opened, scenes):
    model, cfg = opened("backdoored_1")
    return Guard(model, scenes(cfg, CLEAN), "inconsistency", RATE), cfg


def stamp(scene, boxes):
    """White squares of a tenth of each box in its middle: the trigger of this specimen."""
    image = scene["image"].clone()
    for left, top, right, bottom in boxes.tolist():
        x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        half = max(1, round(w * 0.05)), max(1, round(h * 0.05))
        rows = slice(round(y) - half[1], round(y) + half[1])
        image[:, rows, round(x) - half[0] : round(x) + half[0]] = 255
    return {**scene, "image": image}


def test_detections_are_those_of_before(guarded, scenes):
    guard, cfg = guarded
    batch = [{**each, "height": 200, "width": 300} for each in scenes(cfg, 3, "synth_signs_val")]
    with torch.no_grad():
        expected = guard.model(batch)
    outputs = guard(batch)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert set(ours) == {*theirs, SUSPICION}
        assert_same(ours["instances"], theirs["instances"])
        look = ours[SUSPICION].look
        assert len(look.boxes) == len(look.scores)
        assert look.score == pytest.approx(float(look.scores.max()))
        assert look.passes >= 1


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_one_stage_detector_is_guarded_as_well(scenes, kind):
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / "SynthSigns" / f"{kind}_tiny_fpn.yaml")
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(instrument_config(cfg)).eval()
    with torch.no_grad():  # fresh ones hardly tell anchors apart, and detect nothing
        model.head.cls_score.weight.normal_(0, 0.3)
        model.head.cls_score.bias.zero_()
    guard = Guard(model, scenes(cfg, CLEAN), "inconsistency", RATE)
    batch = scenes(cfg, 3, "synth_signs_val")
    with torch.no_grad():
        expected = model(batch)
    for ours, theirs in zip(guard(batch), expected, strict=True):
        assert_same(ours["instances"], theirs["instances"])
        assert math.isfinite(ours[SUSPICION].look.score)
        assert len(ours[SUSPICION].look.boxes)


def test_triggered_images_are_more_suspicious_and_the_place_is_named(guarded, scenes):
    guard, cfg = guarded
    clean, bad = [], []
    for scene in scenes(cfg, 12, "synth_signs_val"):
        scene = {"image": scene["image"]}
        (before,) = guard([scene])
        found = before["instances"][before["instances"].scores > 0.5].pred_boxes.tensor
        (after,) = guard([stamp(scene, found)])
        left = after["instances"][after["instances"].scores > 0.5]
        if len(left) >= len(found):
            continue  # nothing has vanished
        clean.append(before[SUSPICION])
        bad.append(after[SUSPICION])
        if after[SUSPICION].is_suspicious:
            places = after[SUSPICION].look.boxes[after[SUSPICION].suspicious_boxes]
            middles = (places[:, :2] + places[:, 2:]) / 2
            inside = (middles[:, None] > found[None, :, :2]) & (
                middles[:, None] < found[None, :, 2:]
            )
            assert inside.all(dim=2).any()
    assert len(bad) >= 6
    assert np.mean([each.is_suspicious for each in bad]) >= 0.5
    assert np.mean([each.is_suspicious for each in clean]) <= 0.2


def test_threads_get_what_one_gets(guarded, scenes):
    guard, cfg = guarded
    batch = scenes(cfg, 8, "synth_signs_val")
    alone = [guard([scene])[0] for scene in batch]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: guard([batch[index % 8]])[0], range(16)))
    for index, ours in enumerate(together):
        theirs = alone[index % 8]
        assert_same(ours["instances"], theirs["instances"])
        assert ours[SUSPICION].look.score == theirs[SUSPICION].look.score
        assert torch.equal(ours[SUSPICION].look.scores, theirs[SUSPICION].look.scores)


def test_a_default_predictor_of_stock_classes(opened, scenes, tmp_path):
    model, cfg = opened("clean_0")
    stock = cfg.clone()
    stock.defrost()
    stock.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    stock.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    stock.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    stock.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save({"model": model.state_dict()}, stock.MODEL.WEIGHTS)
    predictor = DefaultPredictor(stock)
    arrays = [np.ascontiguousarray(s["image"].permute(1, 2, 0).numpy()) for s in scenes(cfg, 30)]
    guard = Guard(predictor, arrays, "inconsistency", RATE)
    large = np.repeat(np.repeat(arrays[0], 2, axis=0), 3, axis=1)
    for image in (arrays[1], large):
        assert_same(guard(image)["instances"], predictor(image)["instances"])
    height, width = large.shape[:2]
    boxes = guard(large)[SUSPICION].look.boxes
    assert boxes[:, 2].max() > 128  # pixels of the image, not of the network's input
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    # One set of weights for both.
    ours = dict(guard.model.named_parameters())
    assert all(p.data_ptr() == ours[n].data_ptr() for n, p in predictor.model.named_parameters())


def test_what_cannot_be_guarded_is_told():
    with pytest.raises(TypeError, match="DefaultPredictor"):
        Guard(torch.nn.Linear(1, 1), [])


def test_too_few_clean_images_are_found_out_before_any_is_read(opened):
    model, _ = opened("clean_0")

    class Unread(list):
        def __getitem__(self, index):
            raise AssertionError

    with pytest.raises(FitError, match="20 clean images cannot hold a false alarm rate"):
        Guard(model, Unread([None] * 20))


def test_a_method_of_ones_own_needs_no_registration(opened, scenes):
    model, cfg = opened("clean_0")

    class Brightness(ScreeningMethod):
        """Bright images."""

        def look(self, seen):
            return ImageLook(float(seen.image.float().mean()), seen.boxes, seen.scores, 1.0)

    screen = Screen(Brightness(model, cfg), ScoreNull.of(range(100)), 0.01)
    (scene,) = scenes(cfg, 1)
    (output,) = Guard(model, method=screen)([{"image": torch.full_like(scene["image"], 255)}])
    assert output[SUSPICION].is_suspicious
    assert output[SUSPICION].p_value == pytest.approx(1 / 101)


def test_a_score_that_is_no_number_is_suspicious():
    scores = torch.tensor([0.5, math.nan])
    look = look_of_boxes(torch.zeros(2, 4), scores, 1.0, floor=-10.0)
    suspicion = Suspicion(look, 1.0, threshold=1.0)
    assert suspicion.is_suspicious
    assert suspicion.suspicious_boxes.tolist() == [False, True]


def test_a_stream_takes_no_more_memory_as_it_goes_on(guarded, scenes):
    guard, cfg = guarded
    batch = scenes(cfg, 2, "synth_signs_val")

    def tensors_after(rounds: int) -> int:
        for _ in range(rounds):
            for scene in batch:
                guard([scene])
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

    settled = tensors_after(2)
    assert tensors_after(6) == settled
    # Nothing goes on listening.
    assert not any(module._forward_hooks for module in guard.model.modules())
