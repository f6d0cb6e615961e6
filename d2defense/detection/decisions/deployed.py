# SPDX-License-Identifier: Apache-2.0
"""The default decision."""

from __future__ import annotations

from d2defense.registry import DECISION_REGISTRY
from d2defense.statistics import OBJECT_STATISTICS

from ..by_class import CLASS_FALLS
from .base import Decision


@DECISION_REGISTRY.register("deployed")
class Deployed(Decision):
    """Score by what objects lose of what the detector is used for, beyond clean detectors.

    Free of the scale and offset of its scores: max q and true class on a scale that all detectors
    share, and detections of the own class at the score where it does best. Of all objects, and of
    the class that loses most.
    """

    title = (
        "largest fall over the triggers, of all objects or of one class, of max q or true class on "
        "a common scale or of objects found at the operating point, beyond clean detectors'"
    )
    statistics = (*OBJECT_STATISTICS, *CLASS_FALLS)
    sign = -1
    is_change = True
    settings = ("iou_threshold",)
    minimum_deviation = 0.02
