# SPDX-License-Identifier: Apache-2.0
"""Double-Head R-CNN: one head says what, another where."""

from __future__ import annotations

from typing import ClassVar

from detectron2.modeling import ROI_HEADS_REGISTRY
from torch import Tensor

from ..double_head import DoubleHeadROIHeads
from ..double_head.predictor import DoubleHeadPredictions
from .probing import OTHER_HEADS, ProbedROIHeads


@ROI_HEADS_REGISTRY.register()
class InstrumentedDoubleHeadROIHeads(ProbedROIHeads, DoubleHeadROIHeads):
    """DoubleHeadROIHeads, parameters and forward pass unchanged.

    The classification head counts, also where the convolution head has a classifier of its own
    (Double-Head-Ext): a probe gives the logits of both.
    """

    resettable_modules: ClassVar[dict[str, tuple[str, ...]]] = {
        "fc_head": ("roi_heads.box_head.fc_head.",),
        "conv_head": ("roi_heads.box_head.conv_head.",),
        "box_predictor": ("roi_heads.box_predictor.",),
        **OTHER_HEADS,
    }
    classification_modules: ClassVar[tuple[str, ...]] = ("fc_head", "box_predictor")

    def _classifier_logits(self, predictions: DoubleHeadPredictions) -> tuple[Tensor, ...]:
        if predictions.conv_scores is None:
            return (predictions.fc_scores,)
        return predictions.conv_scores, predictions.fc_scores

    def _deployed_logits(self, classifiers: tuple[Tensor, ...]) -> Tensor:
        """Of the fused scores, where stock inference fuses them."""
        if not self.box_predictor.fused_score:
            return classifiers[-1]
        conv, fc = (logits.softmax(dim=1) for logits in classifiers)
        return (fc + conv * (1 - fc)).clamp(min=1e-30).log()
