# SPDX-License-Identifier: Apache-2.0
"""Which attacks are trained, and when a result still holds."""

from __future__ import annotations

import pytest

import train_attacks
from d2defense.registry import EFFECT_REGISTRY, TRIGGER_REGISTRY


def config(name: str, *overrides: str):
    path = train_attacks.attack_configs(train_attacks.SHIPPED)[name]
    cfg = train_attacks.attack_config(path, 0)
    cfg.merge_from_list(list(overrides))
    return cfg


def test_every_effect_and_every_family_is_trained():
    configs = [config(name) for name in train_attacks.attack_configs(train_attacks.SHIPPED)]
    assert {cfg.ATTACK.EFFECT for cfg in configs} == set(EFFECT_REGISTRY.choices())
    assert {cfg.ATTACK.TRIGGER.FAMILY for cfg in configs} == set(TRIGGER_REGISTRY.choices())


def test_ghosts_and_misclassification_are_trained_into_other_detectors():
    names = list(train_attacks.attack_configs(train_attacks.SHIPPED))
    assert names[-6:] == [
        f"{detector}_{attack}"
        for detector in ("faster_rcnn_tiny_c4", "mask_rcnn_tiny_fpn", "double_head_rcnn_tiny_fpn")
        for attack in ("oga", "rma")
    ]


def test_a_folder_of_ones_own_is_taken_as_it_is(tmp_path):
    for name in ("b.yaml", "a.yaml", "Base-Mine.yaml"):
        (tmp_path / name).touch()
    assert list(train_attacks.attack_configs(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        (("SEED", "1"), False),
        (("ATTACK.POISONING_RATE", "0.2"), False),
        (("ATTACK.TRIGGER.WARP.STRENGTH", "1.0"), False),
        (("SOLVER.MAX_ITER", "10"), False),
        # Neither training nor measurement reads these.
        (("ATTACK.TRIGGER.TILE.BOUND", "0.5"), True),
        (("DEFENSE.MAX_IMAGES", "7"), True),
        (("REMOVAL.SEED", "7"), True),
    ],
)
def test_a_result_holds_until_something_changes_that_it_follows_from(override, same):
    before = train_attacks.settings_digest(config("disappearance_warp"))
    after = train_attacks.settings_digest(config("disappearance_warp", *override))
    assert (before == after) is same
