# SPDX-License-Identifier: Apache-2.0
"""The tool that compares rules for the score, against scipy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from programs import as_module
from scipy import stats

from d2defense.statistics import STATISTICS

TOOL = Path(__file__).resolve().parents[2] / "benchmarks" / "score_study.py"


@pytest.fixture(scope="module")
def study():
    return as_module(TOOL)


@pytest.fixture
def evidence(study):
    rng = np.random.default_rng(0)
    clean = rng.normal(0, 1, (9, 3, len(STATISTICS)))
    changes = rng.normal(1, 1, (3, len(STATISTICS)))
    return study.Evidence(changes, clean, np.full(len(STATISTICS), 1e-9), changes)


def test_combined_p_values_are_scipys(study, evidence):
    # Two samples of sizes n and 1: the t-test for one more draw from the same population.
    fishers, stouffers = [], []
    for trigger in range(3):
        p = [
            stats.ttest_ind(
                [evidence.changes[trigger, s]], evidence.clean[:, trigger, s], alternative="greater"
            ).pvalue
            for s in range(len(STATISTICS))
        ]
        np.testing.assert_allclose(study.p_values(evidence)[trigger], p)
        fishers.append(stats.combine_pvalues(p, "fisher").statistic)
        z = study.standardized(evidence)[trigger]
        stouffers.append(stats.combine_pvalues(stats.norm.sf(z), "stouffer").statistic)
    assert study.fisher(evidence) == pytest.approx(max(fishers))
    assert study.stouffer(evidence) == pytest.approx(max(stouffers))


def test_auc_is_the_mann_whitney_statistic(study, make_profile):
    rng = np.random.default_rng(1)
    entries = [
        study.Entry(make_profile(str(i), float(fall), 0.0), i >= 12, "d")
        for i, fall in enumerate([*rng.normal(0, 0.1, 12), *rng.normal(0.15, 0.1, 7)])
    ]
    evidence = study.evidence_of(entries, ["white", "grey"])
    assert all(
        len(e.clean) == 11 + entry.backdoored for e, entry in zip(evidence, entries, strict=True)
    )
    rule = study.CANDIDATES["largest change of max_foreground"]
    row = study.compare_rule(rule, entries, evidence)
    scores = [rule.score(e) for e in evidence]
    assert row["AUC"] == pytest.approx(
        stats.mannwhitneyu(scores[12:], scores[:12]).statistic / (12 * 7)
    )
    assert row["highest clean"] == max(scores[:12])
    assert not math.isnan(row["margin"])
