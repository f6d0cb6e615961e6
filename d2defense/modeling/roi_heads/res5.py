# SPDX-License-Identifier: Apache-2.0
"""Faster and Mask R-CNN with C4: the backbone's last stage is the box head."""

from __future__ import annotations

from typing import ClassVar

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Instances
from torch import Tensor

from .probing import OTHER_HEADS, ProbedROIHeads


@ROI_HEADS_REGISTRY.register()
class InstrumentedRes5ROIHeads(ProbedROIHeads, Res5ROIHeads):
    """Detectron2's Res5ROIHeads, parameters and forward pass unchanged.

    Where there is a mask head, it shares ``res5`` with the boxes.
    """

    resettable_modules: ClassVar[dict[str, tuple[str, ...]]] = {
        "res5": ("roi_heads.res5.",),
        "box_predictor": ("roi_heads.box_predictor.",),
        **OTHER_HEADS,
    }
    classification_modules: ClassVar[tuple[str, ...]] = ("res5", "box_predictor")

    def _predict(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        box_features = self._shared_roi_transform(
            [features[f] for f in self.in_features], [x.proposal_boxes for x in proposals]
        )
        return self.box_predictor(box_features.mean(dim=[2, 3]))
