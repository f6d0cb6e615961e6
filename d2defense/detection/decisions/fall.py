# SPDX-License-Identifier: Apache-2.0
"""The decision by the detector's own scores."""

from __future__ import annotations

from d2defense.registry import DECISION_REGISTRY

from .base import Decision


@DECISION_REGISTRY.register("fall")
class Fall(Decision):
    """Score by what objects lose under a patch, beyond what they lose with clean detectors.

    See docs/method.md for the comparison that it rests on. Whoever divides all class logits hides
    from it.
    """

    title = (
        "largest fall of max_foreground or true_class over the triggers, beyond clean detectors'"
    )
    statistics = ("max_foreground", "true_class")
    sign = -1
    is_change = True
    settings = ("iou_threshold",)
    minimum_deviation = 0.02
