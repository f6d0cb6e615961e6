# SPDX-License-Identifier: Apache-2.0
"""Detectors measured on clean and triggered images."""

from .attack import EVALUATED_STATISTICS, AttackEvaluator
from .coco import build_coco_evaluator, predicted_tasks
from .conditions import (
    CLEAN,
    CONDITIONS,
    TRIGGERED,
    ConditionDatasetMapper,
    ConditionEvaluator,
    build_paired_test_loader,
)
from .coverage import attack_coverage, describe_coverage
from .detector import AP_METRICS, evaluate_detector, judge_attack
from .log import report_attack
from .paired import POISONED, build_paired_evaluator
from .probed import ProbedDetector
from .rates import RATES, AttackedImage, attack_rates

__all__ = [
    "AP_METRICS",
    "CLEAN",
    "CONDITIONS",
    "EVALUATED_STATISTICS",
    "POISONED",
    "RATES",
    "TRIGGERED",
    "AttackEvaluator",
    "AttackedImage",
    "ConditionDatasetMapper",
    "ConditionEvaluator",
    "ProbedDetector",
    "attack_coverage",
    "attack_rates",
    "build_coco_evaluator",
    "build_paired_evaluator",
    "build_paired_test_loader",
    "describe_coverage",
    "evaluate_detector",
    "judge_attack",
    "predicted_tasks",
    "report_attack",
]
