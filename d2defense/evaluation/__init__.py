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
from .found import SUCCESSFUL_ASR, attack_succeeded, attack_success_rate, found_objects
from .objects import annotated_objects, at_input_size
from .observation import STATISTICS, Observation, ObservationSettings, reduce_probe
from .probed import ProbedDetector

__all__ = [
    "AP_METRICS",
    "CLEAN",
    "CONDITIONS",
    "EVALUATED_STATISTICS",
    "STATISTICS",
    "SUCCESSFUL_ASR",
    "TRIGGERED",
    "AttackEvaluator",
    "ConditionDatasetMapper",
    "ConditionEvaluator",
    "Observation",
    "ObservationSettings",
    "ProbedDetector",
    "annotated_objects",
    "at_input_size",
    "attack_succeeded",
    "attack_success_rate",
    "build_coco_evaluator",
    "build_paired_evaluator",
    "build_paired_test_loader",
    "evaluate_detector",
    "found_objects",
    "predicted_tasks",
    "reduce_probe",
    "report_attack",
]
