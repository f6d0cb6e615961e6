# SPDX-License-Identifier: Apache-2.0
"""The scan of this project without a search."""

from __future__ import annotations

from d2defense.detection.verdict import BACKDOORED
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("bank")
class Bank(DetectionMethod):
    """d2defense's bank: what objects lose under given patches, beyond clean detectors.

    ``d2defense scan --search off`` (docs/method.md). The verdict "uncertain" is no alarm.
    """

    needs = "profiles of clean detectors"

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the default decision, alarm where the verdict is "backdoored"."""
        inspection = subject.inspect()
        verdict = inspection.verdict
        return Judgement(
            verdict.score,
            verdict.interval,
            verdict.label == BACKDOORED,
            verdict=verdict.label,
            parts={each["name"]: each["score"] for each in inspection.fields["triggers"]},
            details={"worst_trigger": inspection.worst_trigger},
        )
