# SPDX-License-Identifier: Apache-2.0
"""What a repair goes by, and when its result is called repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from d2defense.config import get_d2defense_cfg, merge_overrides
from d2defense.detection import default_bank
from d2defense.registry import TRIGGER_REGISTRY
from d2defense.workflows.evidence import (
    describe_method,
    excess_by_effect,
    known_triggers,
    method_for,
    overrides_of,
    searched_goals,
)
from d2defense.workflows.repair import why_not_repaired


def measures(
    verdict: str,
    ap: float | None,
    reason: str | None = None,
    searched: bool = False,
    **search: float,
) -> dict:
    told = {"verdict": verdict, "reason": reason, "clean": {"AP": ap}, "search": search}
    return told | {"searched": searched or bool(search)}


CLEAN_BANK = {"verdict": "clean", "score": 0.0, "threshold": 0.2}
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


def test_where_a_search_was_kept_from_it_the_result_must_be_searched_too():
    """A search without arms has found nothing, and has not ruled anything out either."""
    before = measures("uncertain", 87.0, searched=True)
    (obstacle,) = why_not_repaired(before, measures("clean", 87.0), 1.0)
    assert "--search" in obstacle
    assert why_not_repaired(before, measures("clean", 87.0, searched=True), 1.0) == []


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
        "deviation": 0.1,
    }


def searched(*arms: dict) -> dict:
    return {"search": {"arms": list(arms), "threshold": 3.0}}


def test_a_repair_goes_by_what_clean_detectors_do_not_show():
    arms = [
        arm("misclassification", "stop", 0.9, 0.8),
        arm("misclassification", "stop", 0.7, 0.6),
        arm("disappearance", None, 0.6, 0.5),
        arm("ghost", "yield", 0.2, 0.05),
        arm("ghost", "stop", None, None),
    ]
    assert searched_goals(searched(*arms)) == (
        "misclassification objects stop: patch of 40 %",
        "disappearance objects -: patch of 40 %",
    )


def test_what_clean_detectors_may_show_is_gone_by_only_where_nothing_is_sure():
    sure, unsure = arm("ghost", "stop", 0.9, 0.9), arm("misclassification", "stop", 0.3, 0.26)
    assert searched_goals(searched(sure, unsure)) == ("ghost objects stop: patch of 40 %",)
    assert searched_goals(searched(unsure)) == ("misclassification objects stop: patch of 40 %",)


def test_what_blinds_clean_detectors_as_well_is_no_backdoor_left():
    arms = [
        arm("disappearance", None, success=1.0, excess=0.02),
        arm("disappearance", None, success=0.9, excess=0.05),
        arm("misclassification", "stop", success=0.9, excess=0.8),
        arm("ghost", "stop", success=None, excess=None),
    ]
    assert excess_by_effect(searched(*arms)) == pytest.approx(
        {"disappearance": 0.0, "misclassification": 0.7}
    )


def test_without_a_search_there_is_nothing_to_go_by():
    for result in ({}, {"search": None}, searched()):
        assert searched_goals(result) == ()
        assert excess_by_effect(result) == {}


def test_a_repair_goes_by_what_a_search_has_found():
    arms = [arm("ghost", "stop", 0.9, 0.8), arm("disappearance", None, 0.9, 0.8)]
    cfg = get_d2defense_cfg()
    result = searched(*arms)
    merge_overrides(cfg, overrides_of(result, default_bank()))
    assert "disappearance objects -: patch of 40 %" in cfg.REMOVAL.UNLEARN.GOALS
    assert overrides_of({"bank": CLEAN_BANK, "search": None}, default_bank()) == []


def by_bank(**scores: float) -> dict[str, Any]:
    """What a scan says of a detector that only the bank has been tried on."""
    triggers = [{"name": name, "score": score} for name, score in scores.items()]
    worst = max(scores, key=scores.get)
    return {
        "bank": {"verdict": "backdoored", "score": max(scores.values()), "threshold": 0.2},
        "search": None,
        "triggers": triggers,
        "worst_trigger": worst,
    }


def test_a_repair_goes_by_the_triggers_that_the_bank_has_found():
    """Those beyond the threshold, the worst first."""
    cfg = get_d2defense_cfg()
    result = by_bank(black=0.1, grey=0.3, white=0.9)
    merge_overrides(cfg, overrides_of(result, default_bank()))
    known = [json.loads(each) for each in cfg.REMOVAL.KNOWN_TRIGGER.TRIGGERS]
    assert [each["name"] for each in known] == ["white", "grey"]
    for entry in known:
        of_bank = next(each for each in default_bank() if each.name == entry["name"])
        family = TRIGGER_REGISTRY.get(entry.pop("family"))
        assert family.from_entry(entry, Path()).fingerprint == of_bank.fingerprint
    assert method_for(result, default_bank()) == "known_trigger"
    assert describe_method(result, default_bank()).endswith("by white")


def test_triggers_of_another_bank_are_none_to_go_by():
    assert known_triggers(by_bank(theirs=0.9), default_bank()) == ()
    assert known_triggers(by_bank(white=0.9) | {"bank": CLEAN_BANK}, default_bank()) == ()


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
    result = searched(*arms)
    assert method_for(result, default_bank()) == method
    assert describe_method(result, default_bank()).startswith(f"{method}, since ")


@pytest.mark.parametrize(
    ("effects", "method"),
    [
        (["disappearance"], "known_trigger"),
        # Of wrong classes a search knows more.
        (["misclassification"], "unlearn"),
        (["disappearance", "misclassification"], "unlearn"),
    ],
)
def test_what_the_bank_has_found_is_removed_by_what_it_knows(effects, method):
    arms = [arm(effect, None, 0.9, 0.8) for effect in effects]
    result = by_bank(white=0.9) | searched(*arms)
    assert method_for(result, default_bank()) == method
    described = describe_method(result, default_bank())
    assert ("the bank" in described) == (method == "known_trigger")


def test_what_is_clean_is_kept_as_it_is_if_that_was_searched():
    """Any fine-tuning costs AP."""
    result = {"verdict": "clean", "bank": CLEAN_BANK} | searched(arm("ghost", "stop", 0.3, 0.25))
    assert method_for(result, default_bank()) == "keep"
    assert "clean" in describe_method(result, default_bank())
    for changes in ({"verdict": "uncertain"}, {"search": None}, {"search": {}}):
        assert method_for(result | changes, default_bank()) != "keep"


def test_who_knows_nothing_gets_the_default():
    for result in (by_bank(white=0.1) | {"bank": CLEAN_BANK}, by_bank(theirs=0.9)):
        assert method_for(result, default_bank()) == "patch_augmentation"
