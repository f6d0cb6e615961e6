# SPDX-License-Identifier: Apache-2.0
"""The box-head half of a probe, shared by every kind of ROI heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor, nn

from ..listeners import listening
from ..postprocess import batch_detections, detections_from
from ..probe import BoxFeatures, ProbeOutput
from ..sigmoid_scores import softmax_logits

# What stock inference has besides boxes, whatever the kind of box head.
OTHER_HEADS: dict[str, tuple[str, ...]] = {
    "mask_head": ("roi_heads.mask_head.",),
    "keypoint_head": ("roi_heads.keypoint_head.",),
}


class ProbedROIHeads:
    """Adds ``probe`` to ROI heads of Detectron2; parameters and forward pass stay as they are.

    Subclasses put this class in front of a stock one and declare their module groups. Those whose
    box head is not run as StandardROIHeads run it override :meth:`_predict` or :meth:`_classify`.

    Attributes:
        resettable_modules: module groups that removal can reset, as prefixes of parameter names
            in the whole detector.
        classification_modules: those of them that say what a proposal is: what a verdict on the
            R-CNN classification branch points to, and what renewal resets by default.
    """

    resettable_modules: ClassVar[dict[str, tuple[str, ...]]]
    classification_modules: ClassVar[tuple[str, ...]]

    def probe(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        with_detections: bool = False,
        score_threshold: float = 0.0,
    ) -> ProbeOutput:
        """Class logits of every proposal, before NMS and without masks or keypoints.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            proposals: G Instances as :meth:`InstrumentedRPN.probe` returns them.
            with_detections: also post-process the same predictions as stock inference does.
            score_threshold: see :meth:`InstrumentedRCNN.probe`.

        Returns:
            The joined :class:`ProbeOutput` of both heads.
        """
        with detections_from(self.box_predictor, score_threshold):
            classifier_logits, detections = self._classify(features, proposals, with_detections)
        deployed = None
        if len(classifier_logits) > 1:
            deployed = self._deployed_logits(tuple(logits.float() for logits in classifier_logits))
        return ProbeOutput.from_proposals(proposals, classifier_logits, detections, deployed)

    def region_logits(self, features: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        """What stock inference ranks proposals by, with gradient.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            proposals: G Instances with ``proposal_boxes``, N boxes in all.

        Returns:
            float32 Tensor of shape (N, K + 1), background last, whose softmax are the scores.
        """
        classifiers, _ = self._classify(features, proposals, False)
        return self._deployed_logits(tuple(logits.float() for logits in classifiers))

    def _deployed_logits(self, classifiers: tuple[Tensor, ...]) -> Tensor:
        """From the logits of each classifier to those of the scores; the last one's by default."""
        return classifiers[-1]

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Instances], with_detections: bool
    ) -> tuple[tuple[Tensor, ...], list[Instances] | None]:
        """Logits of each classifier, the one that counts last, and the detections if asked for."""
        predictions = self._predict(features, proposals)
        detections = None
        if with_detections:
            predictor = self.box_predictor
            detections = batch_detections(
                predictor.predict_boxes(predictions, proposals),
                predictor.predict_probs(predictions, proposals),
                [x.image_size for x in proposals],
                predictor.test_score_thresh,
                predictor.test_nms_thresh,
                predictor.test_topk_per_image,
            )
        return self._classifier_logits(predictions), detections

    def _predict(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor | None, ...]:
        """What ``box_predictor`` returns for all proposals."""
        box_features = self.box_pooler(
            [features[f] for f in self.box_in_features], [x.proposal_boxes for x in proposals]
        )
        return self.box_predictor(self.box_head(box_features))

    def _classifier_logits(self, predictions: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        """The class logits among the predictions, those that count last."""
        scores = predictions[0]
        if self._has_sigmoid:
            # Stock inference leaves out what it has for background.
            return (softmax_logits(F.logsigmoid(scores[:, :-1].float())),)
        return (scores,)

    @property
    def _has_sigmoid(self) -> bool:
        """Whether each class has a score of its own (MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE)."""
        return any(
            getattr(predictor, "use_sigmoid_ce", False)
            for predictor in self.box_predictor.modules()
        )

    @contextmanager
    def recorded_logits(self) -> Iterator[list[Tensor]]:
        """Listen to the box predictors while stock code runs them.

        Yields:
            A list that each run of a classifier extends by its (N, K + 1) logits, those that count
            last.
        """
        logits: list[Tensor] = []
        with listening(
            self._predictors, lambda inputs, output: logits.extend(self._classifier_logits(output))
        ):
            yield logits

    @contextmanager
    def recorded_features(self) -> Iterator[Callable[[], BoxFeatures]]:
        """Listen to what the box predictors are given while stock code runs them.

        Yields:
            A function that, once that has run, gives the features of all N proposals, those of the
            last stage where there are several.
        """
        pooled: list[Tensor] = []
        classified: list[Tensor] = []
        pooler = self.box_pooler if hasattr(self, "box_pooler") else self.pooler
        with (
            # The mean at once: the maps of all proposals are large.
            listening([pooler], lambda inputs, output: pooled.append(output.mean(dim=(2, 3)))),
            listening(self._predictors, lambda inputs, output: classified.append(inputs[0])),
        ):
            # Res5ROIHeads pools once more for masks, hence not the last of them.
            yield lambda: BoxFeatures(
                pooled[len(classified) - 1].float(), _joined(classified[-1]).float()
            )

    @property
    def _predictors(self) -> list[nn.Module]:
        stages = self.box_predictor
        return list(stages) if isinstance(stages, nn.ModuleList) else [stages]


def _joined(features: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Features of one head or, of several, side by side: (N, F)."""
    parts = features if isinstance(features, tuple) else (features,)
    return torch.cat([part.flatten(1) for part in parts], dim=1)
