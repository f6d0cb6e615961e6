# SPDX-License-Identifier: Apache-2.0
"""Faster and Mask R-CNN with FPN or DC5: a box head of its own on pooled features."""

from __future__ import annotations

from typing import ClassVar

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from .probing import OTHER_HEADS, ProbedROIHeads


@ROI_HEADS_REGISTRY.register()
class InstrumentedStandardROIHeads(ProbedROIHeads, StandardROIHeads):
    """Detectron2's StandardROIHeads, parameters and forward pass unchanged."""

    resettable_modules: ClassVar[dict[str, tuple[str, ...]]] = {
        "box_head": ("roi_heads.box_head.",),
        "box_predictor": ("roi_heads.box_predictor.",),
        **OTHER_HEADS,
    }
    classification_modules: ClassVar[tuple[str, ...]] = ("box_head", "box_predictor")
