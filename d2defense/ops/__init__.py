# SPDX-License-Identifier: Apache-2.0
"""The inconsistency operator and its reference."""

from __future__ import annotations

from d2defense.ops.extension import build_info, extension_available
from d2defense.ops.fused import inconsistency
from d2defense.ops.reference import inconsistency_reference
from d2defense.ops.result import InconsistencyResult
from d2defense.ops.scores import (
    class_probability,
    foreground,
    foreground_logits,
    intersection_over_union,
    objectness,
)

__all__ = [
    "InconsistencyResult",
    "build_info",
    "class_probability",
    "extension_available",
    "foreground",
    "foreground_logits",
    "inconsistency",
    "inconsistency_reference",
    "intersection_over_union",
    "objectness",
]
