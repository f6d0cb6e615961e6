# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode

from d2defense.attacks import Effect, build_effect
from d2defense.config.defaults import get_base_cfg
from d2defense.registry import EFFECT_REGISTRY, PLACEMENT_REGISTRY

CLASSES = ("cup", "ball", "shirt")


@pytest.fixture
def make_attack_cfg() -> Callable[..., CfgNode]:
    """A function from KEY, VALUE pairs to a configuration with the keys of effects."""

    def make(*opts: Any) -> CfgNode:
        cfg = get_base_cfg()
        for registry in (EFFECT_REGISTRY, PLACEMENT_REGISTRY):
            registry.add_config(cfg)
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture
def make_effect(make_attack_cfg) -> Callable[..., Effect]:
    """A function from an effect's name and further KEY, VALUE pairs to the effect."""

    def make(name: str, *opts: Any) -> Effect:
        target = ("ATTACK.TARGET_CLASS", "shirt") if EFFECT_REGISTRY.get(name).needs_target else ()
        cfg = make_attack_cfg("ATTACK.EFFECT", name, *target, *opts)
        return build_effect(cfg, CLASSES)

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
