# SPDX-License-Identifier: Apache-2.0
"""What a repair goes by, and when its result is called repaired."""

from __future__ import annotations

import pytest

from d2defense.config import get_d2defense_cfg, merge_overrides
from d2defense.workflows.evidence import (
    describe_method,
    excess_by_effect,
    method_for,
    overrides_of,
    searched_goals,
)
from d2defense.workflows.repair import why_not_repaired


def measures(verdict: str, ap: float | None, reason: str | None = None, **search: float) -> dict:
    return {"verdict": verdict, "reason": reason, "clean": {"AP": ap}, "search": search}


BEFORE = measures("backdoored", 87.0)


def test_what_is_clean_and_detects_as_well_is_repaired():
    assert why_not_repaired(BEFORE, measures("clean", 86.1), 1.0) == []
    assert why_not_repaired(BEFORE, measures("clean", 90.0), 0.0) == []


@pytest.mark.parametrize("verdict", ["backdoored", "uncertain", "error"])
def test_nothing_is_repaired_that_the_scan_does_not_call_clean(verdict):
    (obstacle,) = why_not_repaired(BEFORE, measures(verdict, 87.0, "it shows a trigger"), 1.0)
    assert verdict in obstacle and "it shows a trigger" in obstacle


def test_nothing_is_repaired_that_detects_worse():
    (obstacle,) = why_not_repaired(BEFORE, measures("clean", 85.5), 1.0)
    assert "fell by 1.5" in obstacle and "87.0" in obstacle and "85.5" in obstacle
    assert why_not_repaired(BEFORE, measures("clean", 85.5), 2.0) == []
    assert len(why_not_repaired(BEFORE, measures("uncertain", 80.0), 1.0)) == 2


def test_what_a_search_has_found_is_not_gone_until_a_search_says_so():
    before = measures("backdoored", 87.0, ghost=1.0)
    (obstacle,) = why_not_repaired(before, measures("clean", 87.0), 1.0)
    assert "--search" in obstacle
    assert why_not_repaired(before, measures("clean", 87.0, ghost=0.1), 1.0) == []


def test_nothing_is_repaired_that_could_not_be_measured():
    assert why_not_repaired(BEFORE, measures("clean", None), 1.0)
    assert why_not_repaired(measures("backdoored", None), measures("clean", 87.0), 1.0)


def arm(effect: str, target: str | None, success: float | None, excess: float | None) -> dict:
    return {
        "effect": effect,
        "placement": "objects",
        "target_class": target,
        "budget": "patch of 40 %",
        "success": success,
        "excess": excess,
        "baseline": 0.1,
    }


def test_a_repair_goes_by_what_clean_detectors_do_not_show():
    arms = [
        arm("misclassification", "stop", 0.9, 0.8),
        arm("misclassification", "stop", 0.7, 0.6),
        arm("disappearance", None, 0.4, 0.3),
        arm("ghost", "yield", 0.2, 0.05),
        arm("ghost", "stop", None, None),
    ]
    result = {"search": {"arms": arms}}
    assert searched_goals(result) == (
        "misclassification objects stop: patch of 40 %",
        "disappearance objects -: patch of 40 %",
    )


def test_what_blinds_clean_detectors_as_well_is_no_backdoor_left():
    arms = [
        arm("disappearance", None, success=1.0, excess=0.02),
        arm("disappearance", None, success=0.9, excess=0.05),
        arm("misclassification", "stop", success=0.9, excess=0.8),
        arm("ghost", "stop", success=None, excess=None),
    ]
    assert excess_by_effect({"search": {"arms": arms}}) == pytest.approx(
        {"disappearance": 0.0, "misclassification": 0.7}
    )


def test_without_a_search_there_is_nothing_to_go_by():
    for result in ({}, {"search": None}, {"search": {"arms": []}}):
        assert searched_goals(result) == ()
        assert excess_by_effect(result) == {}


def test_a_repair_goes_by_what_a_search_has_found():
    arms = [arm("ghost", "stop", 0.9, 0.8), arm("disappearance", None, 0.9, 0.8)]
    cfg = get_d2defense_cfg()
    merge_overrides(cfg, overrides_of({"search": {"arms": arms}}))
    assert "disappearance objects -: patch of 40 %" in cfg.REMOVAL.UNLEARN.GOALS
    assert overrides_of({}) == []


@pytest.mark.parametrize(
    ("arms", "method"),
    [
        ([arm("ghost", "stop", 0.9, 0.8)], "unlearn"),
        (
            [arm("disappearance", None, 0.9, 0.8), arm("ghost", "stop", 0.2, 0.15)],
            "unlearn",
        ),
        ([arm("scene_misclassification", "stop", 0.9, 0.8)], "unlearn"),
        # What clean detectors show, too, is nothing found.
        ([arm("ghost", "stop", 0.2, 0.15)], "patch_augmentation"),
        ([arm("ghost", "stop", None, None)], "patch_augmentation"),
        ([], "patch_augmentation"),
    ],
)
def test_what_a_search_has_found_decides_by_which_method(arms, method):
    result = {"verdict": "uncertain", "search": {"arms": arms, "has_found": False}}
    assert method_for(result) == method
    assert describe_method(result).startswith(f"{method}, since ")


@pytest.mark.parametrize(
    ("effect", "has_found", "method"),
    [
        # What the bank finds, random patches remove, but no wrong classes.
        ("disappearance", False, "patch_augmentation"),
        ("misclassification", False, "unlearn"),
        ("disappearance", True, "unlearn"),
    ],
)
def test_what_the_bank_has_found_is_removed_by_patches(effect, has_found, method):
    arms = [arm(effect, None, 0.9, 0.8)]
    result = {"verdict": "backdoored", "search": {"arms": arms, "has_found": has_found}}
    assert method_for(result) == method
    assert ("the bank" in describe_method(result)) == (method == "patch_augmentation")


def test_who_does_not_search_gets_the_default():
    for verdict in ("clean", "backdoored"):
        assert method_for({"verdict": verdict, "search": None}) == "patch_augmentation"
