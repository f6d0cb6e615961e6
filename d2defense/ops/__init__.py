# SPDX-License-Identifier: Apache-2.0
"""The inconsistency operator, its reference and the statistics made from it."""

from __future__ import annotations

from d2defense.ops.extension import build_info, extension_available
from d2defense.ops.inconsistency import inconsistency
from d2defense.ops.reference import inconsistency_reference
from d2defense.ops.result import InconsistencyResult
from d2defense.ops.scores import (
    class_probability,
    foreground,
    intersection_over_union,
    objectness,
)
from d2defense.ops.statistics import (
    Terms,
    confident_d,
    confident_d_terms,
    gap,
    gap_terms,
    mean_foreground,
    mean_objectness,
    target_mean_terms,
    tau,
    tau_terms,
    true_class_terms,
    unmatched_foreground_terms,
)

__all__ = [
    "InconsistencyResult",
    "Terms",
    "build_info",
    "class_probability",
    "confident_d",
    "confident_d_terms",
    "extension_available",
    "foreground",
    "gap",
    "gap_terms",
    "inconsistency",
    "inconsistency_reference",
    "intersection_over_union",
    "mean_foreground",
    "mean_objectness",
    "objectness",
    "target_mean_terms",
    "tau",
    "tau_terms",
    "true_class_terms",
    "unmatched_foreground_terms",
]
