# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from d2defense.detection import (
    Calibration,
    CleanImage,
    Profile,
    ScanSettings,
    load_clean_images,
    select_triggers,
)
from d2defense.detection.survey import KEPT
from d2defense.statistics import STATISTICS


@pytest.fixture
def lively_detector(make_tiny_cfg) -> nn.Module:
    """A tiny detector with random weights whose scores differ from proposal to proposal."""
    torch.manual_seed(0)
    cfg = make_tiny_cfg("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 1.5)
        model.proposal_generator.rpn_head.objectness_logits.weight.normal_(0, 1.5)
    return model


@pytest.fixture
def clean_images(
    make_coco_dataset, sign_scenes, make_tiny_cfg
) -> Callable[[int], list[CleanImage]]:
    """A function from a number to so many images of synth_signs as the tiny detector sees them."""

    def load(count: int) -> list[CleanImage]:
        return load_clean_images(make_coco_dataset(sign_scenes(count)).load(), make_tiny_cfg())

    return load


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., Profile]:
    """A function from the falls of max q under white and grey to the profile of a detector."""

    def make(name: str, *falls: float, clean: float = 0.9, **changes: float) -> Profile:
        before = dict.fromkeys(STATISTICS, clean) | {"true_class": float("nan")}
        before |= dict.fromkeys(KEPT[len(STATISTICS) :], float("nan"))
        before |= {"scaled_foreground": clean, "found_at_point": clean, "scaled_unmatched": 0.0}
        fallen = ("max_foreground", "scaled_foreground", "found_at_point")
        triggered = {
            trigger: before | dict.fromkeys(fallen, clean - fall) | changes
            for trigger, fall in zip(("white", "grey"), falls, strict=False)
        }
        return Profile(name, "", before, triggered)

    return make


@pytest.fixture(scope="session")
def make_calibration(make_profile) -> Callable[..., Calibration]:
    """A function from the falls of clean detectors under white and grey to a calibration."""

    def make(
        falls: Sequence[Sequence[float]] = ((0.01, 0), (0.02, 0), (0.03, 0)),
        rate: float = 0.01,
        settings: ScanSettings | None = None,
        fingerprint: str = "f" * 64,
    ) -> Calibration:
        profiles = [make_profile(f"clean_{i}", *each) for i, each in enumerate(falls)]
        settings = settings or ScanSettings(select_triggers(["white", "grey"]))
        return Calibration.from_profiles(profiles, settings, rate, "signs", fingerprint, "some")

    return make
