# SPDX-License-Identifier: Apache-2.0
"""Two-stage detectors: an RPN proposes, and ROI heads classify."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .adapter import (
    Groups,
    InstrumentedDetector,
    UnsupportedArchitectureError,
    adapts,
    replaced_name,
)
from .listeners import listening
from .probe import Heard, ProbeOutput
from .regions import Opinion, RegionOutput, as_proposals

logger = logging.getLogger(__name__)

# Stock names and those of the same classes made to be probed.
_PROPOSAL_GENERATORS = {"RPN": "InstrumentedRPN"}
_ROI_HEADS = {
    "StandardROIHeads": "InstrumentedStandardROIHeads",
    "Res5ROIHeads": "InstrumentedRes5ROIHeads",
    "CascadeROIHeads": "InstrumentedCascadeROIHeads",
    "DoubleHeadROIHeads": "InstrumentedDoubleHeadROIHeads",
}
_ROTATED = "its boxes are rotated, and the statistics match upright ones"
_REASONS = {"RRPN": _ROTATED, "RROIHeads": _ROTATED}


@adapts("GeneralizedRCNN")
class InstrumentedRCNN(InstrumentedDetector, GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, parameters and forward pass unchanged, that can be probed."""

    classes_key: ClassVar[str] = "MODEL.ROI_HEADS.NUM_CLASSES"
    has_objectness: ClassVar[bool] = True

    @classmethod
    def instrument(cls, cfg: CfgNode) -> None:
        """Likewise for RPN and ROI heads; see the base class."""
        super().instrument(cfg)
        model = cfg.MODEL
        if model.LOAD_PROPOSALS or model.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
            raise UnsupportedArchitectureError(
                "the detector takes precomputed proposals, so it cannot look at an image alone"
            )
        model.PROPOSAL_GENERATOR.NAME = replaced_name(
            "MODEL.PROPOSAL_GENERATOR.NAME",
            model.PROPOSAL_GENERATOR.NAME,
            _PROPOSAL_GENERATORS,
            _REASONS,
        )
        model.ROI_HEADS.NAME = replaced_name(
            "MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, _ROI_HEADS, _REASONS
        )
        if model.ROI_BOX_HEAD.USE_SIGMOID_CE and "DoubleHead" in model.ROI_HEADS.NAME:
            raise UnsupportedArchitectureError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is on, which Double-Head R-CNN does not have"
            )
        if model.ROI_BOX_HEAD.USE_FED_LOSS:
            # Its weights come from the frequencies of classes in the training data, which a
            # defender does not have. Detections do not depend on it.
            logger.info("MODEL.ROI_BOX_HEAD.USE_FED_LOSS is left out: all classes weigh the same")
            model.ROI_BOX_HEAD.USE_FED_LOSS = False

    @staticmethod
    def parts(cfg: CfgNode) -> tuple[str | None, str | None]:
        """The RPN and the ROI heads; see the base class."""
        return cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME

    @property
    def resettable_modules(self) -> Groups:
        """The RPN and what the ROI heads say; see the base class."""
        return {"rpn": ("proposal_generator.",), **self.roi_heads.resettable_modules}

    @property
    def proposal_modules(self) -> tuple[str, ...]:
        """The RPN."""
        return ("rpn",)

    @property
    def classification_modules(self) -> tuple[str, ...]:
        """As the ROI heads say."""
        return self.roi_heads.classification_modules

    def probe_on(
        self,
        features: dict[str, Tensor],
        images: ImageList,
        with_detections: bool,
        score_threshold: float,
    ) -> ProbeOutput:
        """What the RPN and the box head say of the same proposals; see the base class."""
        proposals = self.proposal_generator.probe(images, features)
        return self.roi_heads.probe(features, proposals, with_detections, score_threshold)

    @torch.no_grad()
    def listen(self, batched_inputs: list[dict[str, Any]]) -> Heard:
        """Stock inference, listened to; see the base class."""
        self._check_eval_mode()
        proposals: list[Instances] = []
        with (
            listening(
                [self.proposal_generator], lambda inputs, output: proposals.extend(output[0])
            ),
            self.roi_heads.recorded_logits() as logits,
            self.roi_heads.recorded_features() as features,
        ):
            detections = self(batched_inputs)
        return Heard(detections, ProbeOutput.from_proposals(proposals, logits), features())

    @torch.no_grad()
    def proposals_on(self, features: dict[str, Tensor], images: ImageList) -> list[Instances]:
        """Those of the RPN; see the base class."""
        with _as_in_inference(self.proposal_generator):
            return self.proposal_generator.probe(images, features)

    def regions_on(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        regions: Sequence[Tensor],
    ) -> RegionOutput:
        """What both heads say; see the base class."""
        objectness = self.proposal_generator.region_logits(features, regions)
        proposals = as_proposals(regions, image_sizes, self.device)
        with _as_in_inference(self.roi_heads):
            return RegionOutput(objectness, self.roi_heads.region_logits(features, proposals))

    def classifiers_on(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        regions: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Of a cascade, for one, each stage; see the base class."""
        proposals = as_proposals(regions, image_sizes, self.device)
        with _as_in_inference(self.roi_heads):
            return self.roi_heads.probe(features, proposals).classifier_logits

    def opinion_on(self, features: dict[str, Tensor], proposals: Sequence[Instances]) -> Opinion:
        """Of both heads; see the base class."""
        heads = self.roi_heads
        # Of a cascade the first stage: only there the boxes are the same for both.
        predictor = next(m for m in heads.modules() if isinstance(m, FastRCNNOutputLayers))
        deltas: list[Tensor] = []
        with (
            listening([predictor.bbox_pred], lambda inputs, output: deltas.append(output)),
            _as_in_inference(heads),
        ):
            logits = heads.region_logits(features, list(proposals))
        regions = [each.proposal_boxes.tensor for each in proposals]
        objectness = self.proposal_generator.region_logits(features, regions)
        return Opinion(logits, deltas[0].float(), objectness.float())

    def losses_on(
        self, features: dict[str, Tensor], images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Of RPN and ROI heads; see the base class."""
        instances = [each["instances"].to(self.device) for each in batched_inputs]
        proposals, rpn_losses = self.proposal_generator(images, features, instances)
        _, head_losses = self.roi_heads(images, features, proposals, instances)
        return head_losses | rpn_losses

    def opinions(
        self, features: dict[str, Tensor], images: ImageList, count: int
    ) -> tuple[ProbeOutput, Tensor | None]:
        """Of the proposals of inference and of the RPN's anchors; see the base class.

        The stock generator runs, and is listened to: what it returns has no gradient.
        """
        generator = self.proposal_generator
        levels: list[Tensor] = []
        with (
            listening([generator.rpn_head], lambda inputs, output: levels.extend(output[0])),
            _as_in_inference(generator),
        ):
            proposals = generator.probe(images, features)
        objectness = torch.cat([level.flatten(1) for level in levels], dim=1).float()
        anchors = objectness.topk(min(count, objectness.shape[1])).values
        with _as_in_inference(self.roi_heads):
            probe = self.roi_heads.probe(features, [each[:count] for each in proposals])
        return probe, anchors

    @property
    def beside_boxes(self) -> tuple[tuple[nn.Module, str], ...]:
        """Masks and keypoints."""
        return (self.roi_heads, "mask_on"), (self.roi_heads, "keypoint_on")

    def run_shapes(self, features: dict[str, Tensor]) -> Sequence[Tensor]:
        """Through RPN head and box head; see the base class."""
        generator, heads = self.proposal_generator, self.roi_heads
        generator.rpn_head([features[name] for name in generator.in_features])
        pooler = getattr(heads, "box_pooler", None) or heads.pooler
        names = getattr(heads, "box_in_features", None) or heads.in_features
        pooled = torch.empty(self._num_proposals, features[names[0]].shape[1], *pooler.output_size)
        head = getattr(heads, "box_head", None) or heads.res5
        for stage in head if isinstance(head, nn.ModuleList) else [head]:
            stage(pooled)
        return ()

    @property
    def prediction_bytes(self) -> int:
        """Class scores and boxes of all classes, for every proposal."""
        return 4 * self._num_proposals * (5 * self.roi_heads.num_classes + 1)

    @property
    def _num_proposals(self) -> int:
        """Of one image, at most."""
        return self.proposal_generator.post_nms_topk[False]


@contextmanager
def _as_in_inference(module: nn.Module) -> Iterator[None]:
    """Let a part of the detector work as in inference; the layers in it stay in their mode."""
    training, module.training = module.training, False
    try:
        yield
    finally:
        module.training = training
