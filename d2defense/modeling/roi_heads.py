# SPDX-License-Identifier: Apache-2.0
"""The box-head half of a probe, for each kind of ROI heads."""

from __future__ import annotations

from typing import ClassVar

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor

from .probe import ProbeOutput


@ROI_HEADS_REGISTRY.register()
class InstrumentedStandardROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads (FPN models), parameters and forward pass unchanged.

    Attributes:
        renewable_modules: module groups that removal can reset, as parameter prefixes inside the
            whole detector.
    """

    renewable_modules: ClassVar[dict[str, tuple[str, ...]]] = {
        "box_head": ("roi_heads.box_head.",),
        "box_predictor": ("roi_heads.box_predictor.",),
        "mask_head": ("roi_heads.mask_head.",),
    }

    def probe(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        with_detections: bool = False,
    ) -> ProbeOutput:
        """Class logits of every proposal, before NMS and without masks or keypoints.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            proposals: G Instances as :meth:`InstrumentedRPN.probe` returns them.
            with_detections: also run the stock post-processing on the same predictions.

        Returns:
            The joined :class:`ProbeOutput` of both heads.
        """
        box_features = self.box_pooler(
            [features[f] for f in self.box_in_features], [x.proposal_boxes for x in proposals]
        )
        predictions = self.box_predictor(self.box_head(box_features))
        detections = None
        if with_detections:
            detections, _ = self.box_predictor.inference(predictions, proposals)
        return ProbeOutput.from_proposals(proposals, predictions[0], detections)
