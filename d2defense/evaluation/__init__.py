# SPDX-License-Identifier: Apache-2.0
"""Average precision on clean and triggered images, and the attack success rate."""

from .detector import AP_METRICS, FoundObjectsEvaluator, evaluate_detector
from .found import attack_success_rate, found_objects

__all__ = [
    "AP_METRICS",
    "FoundObjectsEvaluator",
    "attack_success_rate",
    "evaluate_detector",
    "found_objects",
]
