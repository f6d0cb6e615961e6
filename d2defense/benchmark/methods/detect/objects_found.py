# SPDX-License-Identifier: Apache-2.0
"""The plainest thing to look at."""

from __future__ import annotations

import numpy as np

from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement


@DETECTION_REGISTRY.register("objects_found")
class ObjectsFound(DetectionMethod):
    """Fall of the objects found under a patch of the bank, beyond clean detectors.

    No paper's: what anyone would try first. Final detections alone are looked at, so that it needs
    no access to a detector's modules.
    """

    needs = "profiles of clean detectors"

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the largest fall over patches."""
        seen = subject.survey()
        before = seen.clean.terms["objects_found"].ratio()
        falls = {}
        for name, under in seen.triggered.items():
            clean = [
                each.clean["objects_found"] - each.triggered[name]["objects_found"]
                for each in subject.calibration.profiles
            ]
            falls[name] = before - under.terms["objects_found"].ratio() - float(np.mean(clean))
        worst = max(falls, key=falls.__getitem__)
        return Judgement(falls[worst], details={"worst_trigger": worst})
