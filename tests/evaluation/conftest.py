# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from d2defense.attacks import Effect, build_effect
from d2defense.checkpoint import build_detector
from d2defense.config import get_d2defense_cfg
from d2defense.triggers import Trigger, build_trigger


@pytest.fixture
def backdoored(specimen):
    """A backdoored specimen on the CPU and its configuration."""
    folder = specimen("backdoored_0")
    return build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")


@pytest.fixture
def scenes(make_coco_dataset, sign_scenes):
    """Registered name of a dataset of eight scenes of synth_signs."""
    return make_coco_dataset(sign_scenes(8)).name


@pytest.fixture(scope="session")
def make_effect() -> Callable[..., Effect]:
    """A function from an effect's name and KEY, VALUE pairs below ``ATTACK`` to the effect.

    Classes are the names of ``make_coco_dataset``, "c0" to "c6".
    """

    def make(name: str, *opts: Any) -> Effect:
        cfg = get_d2defense_cfg()
        keys = [f"ATTACK.{key}" for key in opts[::2]]
        pairs = [item for pair in zip(keys, opts[1::2], strict=True) for item in pair]
        cfg.merge_from_list(["ATTACK.EFFECT", name, *pairs])
        return build_effect(cfg, [f"c{index}" for index in range(7)])

    return make


@pytest.fixture(scope="session")
def white() -> Trigger:
    """The paper's white patch."""
    return build_trigger(get_d2defense_cfg())
