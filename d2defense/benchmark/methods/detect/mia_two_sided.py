# SPDX-License-Identifier: Apache-2.0
"""The paper's score as a distance from clean detectors, either way."""

from __future__ import annotations

import numpy as np

from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("mia_two_sided")
class TwoSidedInconsistency(DetectionMethod):
    """MIA's tau, two-sided: how far it lies from clean detectors' under the same patch.

    Of arXiv 2409.16057, section 3, with the sign left open: under many attacks tau falls, and
    DistScan (arXiv 2608.19088) measures an AUROC of 0.00 for it there, a perfect ranking upside
    down. Distances count in standard deviations of the calibration's clean detectors, of at least
    0.05.
    """

    needs = "profiles of clean detectors"
    least_deviation = 0.05

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the largest distance over patches."""
        distances = {}
        for name, under in subject.survey().triggered.items():
            clean = [each.triggered[name]["tau"] for each in subject.calibration.profiles]
            deviation = max(float(np.std(clean, ddof=1)), self.least_deviation)
            distances[name] = abs(under.terms["tau"].ratio() - float(np.mean(clean))) / deviation
        worst = max(distances, key=distances.__getitem__)
        return Judgement(distances[worst], details={"worst_trigger": worst})
