# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from d2defense.evaluation import AP_METRICS
from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.study.experiments.base import Section
from d2defense.study.plan import Plan
from d2defense.study.profiles import load_profile, with_photos
from d2defense.study.repairs import RENEWAL, VANILLA, resetting
from d2defense.study.rows import StudyRows
from d2defense.study.steps import StepResults

TINY = load_profile("tiny")


def evaluation(found: float, gap: float = 0.0, ap: float = 80.0) -> dict[str, Any]:
    """Of a detector that finds everything on clean images."""
    sides = {}
    for condition, share, value in (("clean", 1.0, 0.0), ("triggered", found, gap)):
        statistics = {"tau": 0.5, "tau_all": 0.5, "gap": value}
        sides[condition] = {
            **dict.fromkeys(AP_METRICS, ap),
            "objects_found": share,
            "statistics": statistics,
        }
    return {**sides, "asr": 1 - found, "attack_took": found <= 0.5}


@pytest.fixture
def plan() -> Plan:
    return Plan(replace(TINY, detectors=TINY.detectors[:1]))


def report(name: str, plan: Plan, folder: Path) -> Section:
    """What an experiment makes of the results in a folder."""
    experiment = EXPERIMENT_REGISTRY.get(name)()
    return experiment.report(plan, StudyRows.read(folder, experiment.steps(plan)))


def test_table1_judges_by_what_the_other_clean_detectors_do(plan: Plan, tmp_path: Path) -> None:
    results = StepResults(tmp_path)
    pairs = list(plan.pairs())
    for index, (clean, backdoored) in enumerate(pairs):
        results.put(plan.measure(clean), evaluation(1.0, gap=0.01 * index), 0)
        # The attack of the last seed fails.
        found = (0.2, 0.3, 0.9)[index]
        results.put(plan.measure(backdoored), evaluation(found, gap=0.6), 0)
    section = report("table1", plan, tmp_path)
    _, decisions = section.tables
    by_gap = decisions.headers.index("by gap")
    assert [row[by_gap] for row in decisions.rows] == ["0/3", "3/3"]
    assert section.failed_attacks == (pairs[-1][1].name,)
    (bar,) = section.bars
    assert not bar.met  # (0.8 + 0.7 + 0.1) / 3


def test_table2_compares_what_repairs_give_back(plan: Plan, tmp_path: Path) -> None:
    results = StepResults(tmp_path)
    for clean, backdoored in plan.pairs():
        results.put(plan.measure(clean), evaluation(1.0), 0)
        results.put(plan.measure(backdoored), evaluation(0.2, ap=85.0), 0)
        for repair, found, ap in ((VANILLA, 0.6, 85.0), (RENEWAL, 0.96, 82.0)):
            step = plan.measure_repaired(backdoored, repair)
            results.put(step, evaluation(found, ap=ap), 0)
    bars = {bar.what.partition(",")[0]: bar for bar in report("table2", plan, tmp_path).bars}
    assert bars["recovered by the paper's renewal"].measured == "0.950"
    assert bars["recovered by the paper's renewal"].met
    assert bars["the same over vanilla's"].measured == "1.900"
    assert bars["fall of clean AP by the paper's renewal"].met is False
    assert bars["recovered by ours"].met is None


def test_module_study_names_what_the_scan_identified(plan: Plan, tmp_path: Path) -> None:
    results = StepResults(tmp_path)
    clean, backdoored = next(plan.pairs())
    results.put(plan.measure(clean), evaluation(1.0), 0)
    results.put(plan.measure(backdoored), evaluation(0.2), 0)
    results.put(plan.repair(backdoored, RENEWAL), {"modules": ["rpn", "box_head"]}, 0)
    for repair, found in ((VANILLA, 0.4), (resetting(("rpn",)), 0.6), (RENEWAL, 0.8)):
        results.put(plan.measure_repaired(backdoored, repair), evaluation(found), 0)

    (table,) = report("modules", plan, tmp_path).tables

    shares = {row[1]: row[table.headers.index("recovered")].mean for row in table.rows}
    assert shares["nothing (vanilla)"] == pytest.approx(0.25)
    assert shares["rpn"] == pytest.approx(0.5)
    assert shares["as identified: rpn, box_head"] == pytest.approx(0.75)
    assert shares["box_predictor"] is None


def scan(score: float) -> dict[str, Any]:
    """A scan of one trigger, in which every statistic moves like the score, and tau against it."""
    moved = {"triggered": score, "change": score}
    statistics = {
        "tau": {"triggered": -score, "change": -score},
        "confident_d": moved,
        "gap": moved,
        "objects_found": {"triggered": 1 - score, "change": -score},
    }
    return {
        "score": score,
        "verdict": "backdoored" if score > 0.5 else "clean",
        "worst_trigger": "white",
        "triggers": [{"name": "white", "statistics": statistics}],
    }


def test_population_ranks_what_works_and_lists_the_rest(tmp_path: Path) -> None:
    plan = Plan(with_photos(TINY, "photos"))
    study = EXPERIMENT_REGISTRY.get("photos_population")()
    detectors = study.detectors(plan)
    clean = [detector for detector in detectors if not detector.attack]
    attacked = [detector for detector in detectors if detector.attack]
    results = StepResults(tmp_path)
    for detector, score in zip(clean, (0.0, 0.1, 0.2, 0.3), strict=True):
        results.put(plan.scan(detector), scan(score), 0)
    # One attack did not take, one is missed by the verdict and ranked below a clean detector.
    scores = (0.9, 0.8, 0.7, 0.9, 0.8, 0.25, 0.05)
    for detector, score in zip(attacked, scores, strict=True):
        results.put(plan.scan(detector), scan(score), 0)
        results.put(plan.measure(detector), evaluation(0.9 if score < 0.1 else 0.1), 0)

    section = report("photos_population", plan, tmp_path)

    assert section.failed_attacks == (attacked[-1].name,)
    assert "5 of the backdoored and 0 of the clean" in section.text
    ranking, listed = section.tables
    areas = {row[0]: row[ranking.headers.index("AUC")].mean for row in ranking.rows}
    # 23 of 24 pairs are in order.
    assert areas["the scanner's score"] == pytest.approx(23 / 24)
    assert areas["rise of gap"] == areas["fall of objects found"] == areas["the scanner's score"]
    assert areas["tau (paper)"] == pytest.approx(1 / 24)
    assert [row[0] for row in listed.rows] == [detector.name for detector in detectors]
    assert set(section.figures) == {"photos_population_roc"}
