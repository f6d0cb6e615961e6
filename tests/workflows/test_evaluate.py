# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from statistics import fmean
from typing import Any

import pytest

from d2defense.config import get_d2defense_cfg
from d2defense.evaluation import AP_METRICS, judge_attack
from d2defense.triggers import build_trigger
from d2defense.workflows.evaluation import evaluate, format_evaluation

EVERYTHING = {
    "images": 20, "images_without_places": 0, "objects": 50, "small_objects": 0,
    "classes": 7, "classes_without_victims": 0,
}  # fmt: skip


def evaluation(
    name: str,
    asr: float | None,
    gap: float | None = 0.25,
    control: dict[str, float | None] | None = None,
    **more: Any,
) -> dict[str, Any]:
    condition = {
        **dict.fromkeys(AP_METRICS, 50.0),
        "objects_found": 0.9,
        "extra_detections": 1.25,
        "statistics": {"tau": 0.4125, "gap": gap, "tau_all": 0.7},
    }
    known = [rate for rate in (control or {}).values() if rate is not None]
    return {
        "name": name,
        "error": None,
        "clean": condition,
        "triggered": condition,
        "poisoned": dict.fromkeys(AP_METRICS, 30.0),
        "effect": "misclassification",
        "asr": asr,
        "tdr": 0.5,
        "retain_rate": None,
        "control": control or {},
        **judge_attack(asr, fmean(known) if known else None),
        "coverage": EVERYTHING,
        **more,
    }


def columns(table: str) -> list[list[str]]:
    """Cells of the table's lines, by the rule below its headers."""
    lines = table.splitlines()
    widths = [len(rule) for rule in lines[1].split("  ")]
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    return [
        [line[start : start + width].strip() for start, width in zip(starts, widths, strict=True)]
        for line in lines
    ]


def test_one_table_says_what_is_detected_and_one_what_the_attack_does():
    shown = format_evaluation([evaluation("detector", 0.72, retain_rate=0.875)])
    detected, attacked = map(columns, shown.split("\n\n"))
    headers, _, clean, triggered, poisoned = detected
    assert headers == [
        "checkpoint", "images", *AP_METRICS, "objects found", "extra detections", "tau", "gap",
    ]  # fmt: skip
    assert clean[:3] == ["detector", "clean", "50.0"]
    assert triggered[:3] == ["detector", "triggered", "50.0"]
    assert clean[8:] == triggered[8:] == ["0.900", "1.25", "0.412", "0.250"]
    assert poisoned[:3] == ["detector", "triggered, poisoned labels", "30.0"]
    assert poisoned[8:] == ["", "", "", ""]
    headers, _, row = attacked
    assert dict(zip(headers, row, strict=True)) == {
        "checkpoint": "detector",
        "effect": "misclassification",
        "ASR": "0.720",
        "control ASR": "-",
        "TDR": "0.500",
        "retain rate": "0.875",
        "attack": "took",
    }


@pytest.mark.parametrize(
    ("asr", "control", "cells", "reason"),
    [
        (0.72, {}, ["0.720", "-", "took"], None),
        (0.5, {"a": 0.1, "b": 0.3}, ["0.500", "0.200", "took"], None),
        (0.12, {}, ["0.120", "-", "did not take"], "its ASR is 0.120, under 0.5"),
        (None, {}, ["-", "-", "did not take"], "there is no ASR"),
        (0.6, {"a": 0.3, "b": 0.4, "c": None}, ["0.600", "0.350", "did not take"],
         "its ASR is 0.600, less than 0.3 above the control's 0.350"),
    ],
)  # fmt: skip
def test_the_table_says_whether_the_attack_took(asr, control, cells, reason):
    shown = format_evaluation([evaluation("detector", asr, control=control)])
    headers, _, row = columns(shown.split("\n\n")[1])
    assert [row[headers.index(name)] for name in ("ASR", "control ASR", "attack")] == cells
    assert ("detector: the attack did not take: " in shown) == (reason is not None)
    assert ("Right for a clean or a repaired detector" in shown) == (reason is not None)
    if reason:
        assert f"detector: the attack did not take: {reason}" in shown
    for name, rate in control.items():
        assert f"control {name}: ASR {'-' if rate is None else f'{rate:.3f}'}\n" in f"{shown}\n"


def test_what_was_left_out_is_said_once():
    coverage = EVERYTHING | {"images_without_places": 3, "small_objects": 4}
    both = [evaluation(name, 0.9, coverage=coverage) for name in ("one", "other")]
    line = (
        "images without a place for the trigger: 3 of 20; "
        "objects smaller than ATTACK.MIN_SIZE: 4 of 50"
    )
    assert format_evaluation(both).splitlines().count(line) == 1
    assert "without" not in format_evaluation([evaluation("one", 0.9)])


def test_missing_numbers_and_errors_are_shown():
    failed = {"name": "broken", "error": "broken: no weights"}
    shown = format_evaluation([failed, evaluation("detector", 0.9, gap=None)])
    assert columns(shown.split("\n\n")[0])[2][11] == "-"
    assert shown.splitlines()[-1] == "error: broken: no weights"
    assert format_evaluation([failed]) == "error: broken: no weights"


@pytest.fixture
def scenes(make_coco_dataset, sign_scenes):
    return make_coco_dataset(sign_scenes(4))


def white():
    return build_trigger(get_d2defense_cfg())


def test_the_control_bears_the_same_trigger(specimen, scenes, tmp_path):
    """Against evaluations of its detectors on their own."""
    folders = [specimen(name) for name in ("clean_0", "backdoored_0")]
    suspect, gone = specimen("backdoored_1"), tmp_path / "gone"
    result, failed = evaluate([suspect, gone], scenes, white(), control=folders)
    assert failed == {"name": failed["name"], "error": f"{gone}: no such file or folder"}
    alone = {one["name"]: one["asr"] for one in evaluate(folders, scenes, white())}
    assert result["control"] == alone
    assert list(alone) == ["clean_0", "backdoored_0"]
    assert result["control_asr"] == pytest.approx(fmean(alone.values()))
    assert alone["backdoored_0"] > 0.5
    # A control that is backdoored itself makes the attack look like nothing.
    without, *_ = evaluate([suspect], scenes, white())
    assert without["asr"] == result["asr"]
    assert (without["control"], without["control_asr"]) == ({}, None)
    assert (without["attack_took"], without["reason"]) == (True, None)
    excess = result["asr"] - result["control_asr"]
    assert result["attack_took"] == (excess >= 0.3)


@pytest.mark.parametrize("problem", ["missing", "of other classes", "damaged"])
def test_a_control_that_cannot_be_used_ends_the_evaluation(
    specimen, scenes, tmp_path, make_coco_dataset, sign_scenes, problem
):
    control, dataset = tmp_path / "control", scenes
    reason = "no such file or folder"
    if problem != "missing":
        shutil.copytree(specimen("clean_0"), control)
    if problem == "of other classes":
        dataset, reason = make_coco_dataset(sign_scenes(2), num_classes=9), "9 classes"
    if problem == "damaged":
        weights = control / "model_final.pth"
        weights.write_bytes(weights.read_bytes()[:5000])
        reason = "model_final.pth"
    with pytest.raises(ValueError, match=f"^control: .*{reason}"):
        evaluate([specimen("clean_1")], dataset, white(), control=[control])
