# SPDX-License-Identifier: Apache-2.0
"""Detectors measured on clean and triggered images, against the true annotations."""

from .attack import EVALUATED_STATISTICS, AttackEvaluator, report_attack
from .conditions import (
    CLEAN,
    CONDITIONS,
    TRIGGERED,
    ConditionDatasetMapper,
    ConditionEvaluator,
    build_paired_test_loader,
)
from .detector import AP_METRICS, evaluate_detector
from .evaluators import build_coco_evaluator, build_paired_evaluator, predicted_tasks
from .probed import ProbedDetector

__all__ = [
    "AP_METRICS",
    "CLEAN",
    "CONDITIONS",
    "EVALUATED_STATISTICS",
    "TRIGGERED",
    "AttackEvaluator",
    "ConditionDatasetMapper",
    "ConditionEvaluator",
    "ProbedDetector",
    "build_coco_evaluator",
    "build_paired_evaluator",
    "build_paired_test_loader",
    "evaluate_detector",
    "predicted_tasks",
    "report_attack",
]
