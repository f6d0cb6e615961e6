# SPDX-License-Identifier: Apache-2.0
"""The scan of this project without a search."""

from __future__ import annotations

from d2defense.detection import inspect_detector
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("bank")
class Bank(DetectionMethod):
    """d2defense's bank: what objects lose under given patches, beyond clean detectors.

    The default of ``d2defense scan`` (docs/method.md). The verdict "uncertain" is no alarm.
    """

    needs = "profiles of clean detectors"

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the decision "fall", alarm where the verdict is "backdoored"."""
        inspection = inspect_detector(
            subject.model,
            subject.images,
            subject.settings,
            subject.calibration,
            subject.image_format,
            fingerprint=subject.fingerprint,
        )
        verdict = inspection.verdict
        details = {"verdict": verdict.label, "worst_trigger": inspection.worst_trigger}
        return Judgement(
            verdict.score, verdict.interval, verdict.label == "backdoored", details=details
        )
