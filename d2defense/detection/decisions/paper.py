# SPDX-License-Identifier: Apache-2.0
"""The paper's decision."""

from __future__ import annotations

from d2defense.registry import DECISION_REGISTRY

from .base import Decision


@DECISION_REGISTRY.register("paper")
class PaperDecision(Decision):
    """Score by tau alone, against one threshold, as the paper does.

    The paper's backdoor score, arXiv 2409.16057, section 3.
    """

    title = "largest tau under a trigger"
    statistics = ("tau",)
    sign = 1
    is_change = False
    settings = ("epsilon", "topk")
    minimum_deviation = 0.05
