# SPDX-License-Identifier: Apache-2.0
"""The paper's backdoor score."""

from __future__ import annotations

from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("mia")
class ModuleInconsistency(DetectionMethod):
    """MIA, the paper: the largest tau under a patch of the bank.

    "Towards Robust Object Detection: Identifying and Removing Backdoors via Module Inconsistency
    Analysis" (arXiv 2409.16057, section 3): tau is the mean inconsistency ``|p - q|`` above
    epsilon, over the proposals of highest objectness.

    Decided here: the patches are those of the bank, since the paper's defender knows the kind of
    trigger; there is no alarm, since the paper has no threshold that holds for other detectors.
    """

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by tau itself, as the paper does."""
        seen = subject.survey()
        taus = {name: under.terms["tau"].ratio() for name, under in seen.triggered.items()}
        worst = max(taus, key=taus.__getitem__)
        return Judgement(taus[worst], details={"worst_trigger": worst})
