# SPDX-License-Identifier: Apache-2.0
"""The scan of this project with all that it has."""

from __future__ import annotations

from d2defense.detection.search import with_search
from d2defense.detection.verdict import BACKDOORED
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionSubject, Judgement
from .search import Search, found_by


@DETECTION_REGISTRY.register("scan")
class Scan(Search):
    """d2defense's bank and search together: the verdict of ``d2defense scan --search standard``.

    The search is done whatever the bank says, so that both have a score; a scan leaves it out where
    the bank has found a backdoor. Where `bank` or `search` is run on the same detector at the same
    time, their work is not done again, but counted. A search that cannot be done is no failure: the
    verdict says what a scan says then.
    """

    needs = "profiles of clean detectors, detectors held to be clean"

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by whichever exceeds its threshold more times, so that both have one scale."""
        bank, outcome = subject.inspect().verdict, self.searched(subject)
        verdict = with_search(bank, outcome)
        parts, effect, target = {"bank": bank.score / bank.threshold}, None, None
        if outcome.arms:
            parts["search"] = outcome.score / outcome.threshold
            if parts["search"] > parts["bank"]:
                effect, target = found_by(outcome, subject.class_names)
        return Judgement(
            max(parts.values()),
            None,
            verdict.label == BACKDOORED,
            effect,
            target,
            verdict.label,
            parts,
            {"reason": verdict.reason},
        )
