# SPDX-License-Identifier: Apache-2.0
"""Cascade R-CNN: box heads that refine each other's boxes."""

from __future__ import annotations

from typing import ClassVar

import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Instances
from torch import Tensor

from .probing import OTHER_HEADS, ProbedROIHeads


@ROI_HEADS_REGISTRY.register()
class InstrumentedCascadeROIHeads(ProbedROIHeads, CascadeROIHeads):
    """Detectron2's CascadeROIHeads, parameters and forward pass unchanged.

    A probe gives the class logits of every stage. The last stage counts: it has seen each
    proposal where the stages before it moved its box to. Boxes and objectness stay those of the
    RPN.
    """

    resettable_modules: ClassVar[dict[str, tuple[str, ...]]] = {
        "box_head": ("roi_heads.box_head.",),
        "box_predictor": ("roi_heads.box_predictor.",),
        **OTHER_HEADS,
    }
    classification_modules: ClassVar[tuple[str, ...]] = ("box_head", "box_predictor")

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Instances], with_detections: bool
    ) -> tuple[tuple[Tensor, ...], list[Instances] | None]:
        if not with_detections:
            return self._run_stages(features, proposals), None
        # Detections average the stages' scores: stock code does that, and is listened to.
        with self.recorded_logits() as logits:
            detections = self._forward_box(features, proposals)
        return tuple(logits), detections

    def _deployed_logits(self, classifiers: tuple[Tensor, ...]) -> Tensor:
        """Of the mean of all stages' scores, as stock inference has it."""
        scores = torch.stack([logits.log_softmax(dim=1) for logits in classifiers])
        return scores.logsumexp(dim=0)

    def _run_stages(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Class logits of each stage, up to the last one's and no further."""
        inputs = [features[f] for f in self.box_in_features]
        image_sizes = [x.image_size for x in proposals]
        logits: list[Tensor] = []
        for stage in range(self.num_cascade_stages):
            predictions = self._run_stage(inputs, proposals, stage)
            logits.extend(self._classifier_logits(predictions))
            if stage + 1 < self.num_cascade_stages:
                boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
        return tuple(logits)
