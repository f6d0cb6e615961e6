# SPDX-License-Identifier: Apache-2.0
"""One-stage detectors: a head says of every anchor what is there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, roi_align

from .adapter import Groups, InstrumentedDetector
from .listeners import listening
from .postprocess import detections_from
from .probe import BoxFeatures, Heard, ProbeOutput
from .regions import Opinion, RegionOutput
from .sigmoid_scores import softmax_logits

# Of the anchors of an image, those of the largest score become proposals, fewer after NMS: as many
# and as far apart as an RPN's (Detectron2's defaults of MODEL.RPN).
_CANDIDATES, _IOU, _PROPOSALS = 1000, 0.7, 300
# Points of a box, each way, at which its features are taken.
_POOLED = 3


@dataclass(frozen=True)
class DensePredictions:
    """What the head says of all anchors.

    Attributes:
        log_scores: float32 Tensor of shape (G, A, K), log of each class's score, with gradient.
        deltas: Tensor of shape (G, A, 4), to the anchors.
        anchors: A boxes, XYXY in pixels of the network's input.
    """

    log_scores: Tensor
    deltas: Tensor
    anchors: Boxes


class InstrumentedDense(InstrumentedDetector):
    """What RetinaNet and FCOS share: proposals are the boxes of the anchors that score highest.

    There is no objectness: the one head says at once that something is here, and what. In the
    logits of a probe all classes together are as likely as the likeliest class's score says
    (:func:`~d2defense.modeling.sigmoid_scores.softmax_logits`). Subclasses say what the head's
    output means.
    """

    has_objectness: ClassVar[bool] = False

    @property
    def resettable_modules(self) -> Groups:
        """The towers of the head and what stands on them."""
        return {
            "cls_subnet": ("head.cls_subnet.",),
            "cls_score": ("head.cls_score.",),
            "bbox_subnet": ("head.bbox_subnet.",),
            "bbox_pred": ("head.bbox_pred.", "head.ctrness."),
        }

    @property
    def proposal_modules(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def classification_modules(self) -> tuple[str, ...]:
        """The tower of the classes and its scores."""
        return "cls_subnet", "cls_score"

    @abstractmethod
    def _predictions(
        self, features: Sequence[Tensor], predictions: list[list[Tensor]]
    ) -> DensePredictions:
        """The head's output for anchors in a row.

        Args:
            features: maps that the head saw.
            predictions: what it returned.
        """

    def probe_on(
        self,
        features: dict[str, Tensor],
        images: ImageList,
        with_detections: bool,
        score_threshold: float,
    ) -> ProbeOutput:
        """What the head says of its likeliest boxes; see the base class."""
        maps = self._head_features(features)
        predictions = self.head(maps)
        # Before stock inference, which works in place.
        probe = self._probe(self._predictions(maps, predictions), images.image_sizes)
        if not with_detections:
            return probe
        with detections_from(self, score_threshold):
            found = self.forward_inference(images, maps, predictions)
        # Stock inference cuts boxes to the image last, where it rescales them.
        detections = [detector_postprocess(each, *each.image_size) for each in found]
        return replace(probe, detections=detections)

    @torch.no_grad()
    def listen(self, batched_inputs: list[dict[str, Any]]) -> Heard:
        """Stock inference, listened to; see the base class."""
        self._check_eval_mode()
        seen: list[DensePredictions] = []
        maps: list[Tensor] = []
        towers: list[Tensor] = []

        def head(inputs: tuple[Any, ...], output: Any) -> None:
            maps.extend(inputs[0])
            # Before stock inference, which works in place.
            seen.append(self._predictions(inputs[0], output))

        with (
            listening([self.head], head),
            listening([self.head.cls_subnet], lambda inputs, output: towers.append(output)),
        ):
            detections = self(batched_inputs)
        sizes = [tuple(each["image"].shape[-2:]) for each in batched_inputs]
        proposals = self._proposals(seen[0], sizes)
        features = self._features_of(proposals, maps, towers, seen[0].log_scores.shape[1])
        return Heard(detections, self._probe_of(seen[0], proposals), features)

    def _features_of(
        self,
        proposals: Sequence[Instances],
        maps: Sequence[Tensor],
        towers: Sequence[Tensor],
        num_anchors: int,
    ) -> BoxFeatures:
        """Of each proposal, from the level of the pyramid that it comes from.

        Args:
            proposals: G Instances with ``anchor_index``.
            maps: of each level, (G, C, H, W): what the head saw.
            towers: likewise, (G, F, H, W): what its classifier was given.
            num_anchors: of one image.
        """
        cells = [each.shape[2] * each.shape[3] for each in maps]
        # As many at each location of each level: Detectron2's heads have it so.
        at_each = num_anchors // sum(cells)
        ends = torch.tensor(cells, device=maps[0].device).cumsum(0) * at_each
        strides = [self.backbone.output_shape()[name].stride for name in self.head_in_features]
        pooled, classified = [], []
        for image, found in enumerate(proposals):
            level = torch.bucketize(found.anchor_index, ends, right=True)
            start = torch.cat([ends.new_zeros(1), ends[:-1]])[level]
            cell = (found.anchor_index - start) // at_each
            boxes = found.proposal_boxes.tensor
            of_box = maps[0].new_zeros(len(found), maps[0].shape[1])
            of_cell = towers[0].new_zeros(len(found), towers[0].shape[1])
            for number, (each, tower) in enumerate(zip(maps, towers, strict=True)):
                rows = (level == number).nonzero()[:, 0]
                of_box[rows] = roi_align(
                    each[image : image + 1],
                    [boxes[rows].to(each.dtype)],
                    _POOLED,
                    1 / strides[number],
                    aligned=True,
                ).mean(dim=(2, 3))
                of_cell[rows] = tower[image].flatten(1)[:, cell[rows]].T
            pooled.append(of_box)
            classified.append(of_cell)
        return BoxFeatures(torch.cat(pooled).float(), torch.cat(classified).float())

    @torch.no_grad()
    def proposals_on(self, features: dict[str, Tensor], images: ImageList) -> list[Instances]:
        """The likeliest boxes; see the base class. Each knows its ``anchor_index``."""
        return self._proposals(self._dense(features), images.image_sizes)

    def regions_on(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        regions: Sequence[Tensor],
    ) -> RegionOutput:
        """What the head says of the anchors next to them; see the base class.

        For each class the score of the anchor that gives it the largest counts, and its box.
        """
        dense = self._dense(features)
        log_scores, overlaps = [], []
        for of_image, deltas, boxes in zip(dense.log_scores, dense.deltas, regions, strict=True):
            boxes = boxes.float().to(of_image.device)
            rows = self._anchors_of(boxes, dense.anchors)
            largest, which = of_image[rows].max(dim=1)
            rows = rows.gather(1, which).flatten()
            said = self.box2box_transform.apply_deltas(
                deltas[rows].float(), dense.anchors.tensor[rows]
            )
            aims = boxes.repeat_interleave(which.shape[1], dim=0)
            log_scores.append(largest)
            overlaps.append((1 - generalized_box_iou_loss(said, aims)).view_as(largest))
        return RegionOutput(None, softmax_logits(torch.cat(log_scores)), torch.cat(overlaps))

    def opinion_on(self, features: dict[str, Tensor], proposals: Sequence[Instances]) -> Opinion:
        """Of the anchors that they come from; see the base class."""
        dense = self._dense(features)
        rows = [each.anchor_index for each in proposals]
        log_scores, deltas = (
            torch.cat([of_image[row] for of_image, row in zip(part, rows, strict=True)])
            for part in (dense.log_scores, dense.deltas)
        )
        return Opinion(softmax_logits(log_scores), deltas.float(), None)

    @abstractmethod
    def _anchors_of(self, regions: Tensor, anchors: Boxes) -> Tensor:
        """Indices of the anchors that speak for each region.

        Args:
            regions: (M, 4), XYXY in pixels.
            anchors: all of them.

        Returns:
            int64 Tensor of shape (M, A).
        """

    def losses_on(
        self, features: dict[str, Tensor], images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Of the head; see the base class."""
        maps = self._head_features(features)
        instances = [each["instances"].to(self.device) for each in batched_inputs]
        return self.forward_training(images, maps, self.head(maps), instances)

    def opinions(
        self, features: dict[str, Tensor], images: ImageList, count: int
    ) -> tuple[ProbeOutput, Tensor | None]:
        """Of the likeliest boxes; see the base class."""
        return self._probe(self._dense(features), images.image_sizes, count), None

    def run_shapes(self, features: dict[str, Tensor]) -> Sequence[Tensor]:
        """Through the head; see the base class."""
        self.head(self._head_features(features))
        return ()

    @property
    def prediction_bytes(self) -> int:
        """Class scores and boxes of the candidates."""
        return 4 * max(self.test_topk_candidates, _CANDIDATES) * (self.num_classes + 5)

    def _head_features(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [features[name] for name in self.head_in_features]

    def _dense(self, features: dict[str, Tensor]) -> DensePredictions:
        maps = self._head_features(features)
        return self._predictions(maps, self.head(maps))

    def _probe(
        self,
        dense: DensePredictions,
        image_sizes: Sequence[tuple[int, int]],
        count: int = _PROPOSALS,
    ) -> ProbeOutput:
        """What is said of the proposals of each image."""
        return self._probe_of(dense, self._proposals(dense, image_sizes, count))

    def _probe_of(self, dense: DensePredictions, proposals: list[Instances]) -> ProbeOutput:
        log_scores = [
            of_image[each.anchor_index]
            for of_image, each in zip(dense.log_scores, proposals, strict=True)
        ]
        return ProbeOutput.from_proposals(proposals, [softmax_logits(torch.cat(log_scores))])

    @torch.no_grad()
    def _proposals(
        self,
        dense: DensePredictions,
        image_sizes: Sequence[tuple[int, int]],
        count: int = _PROPOSALS,
    ) -> list[Instances]:
        """The boxes of the anchors of largest score of each image, the surest first."""
        found = []
        for log_scores, deltas, size in zip(
            dense.log_scores, dense.deltas, image_sizes, strict=True
        ):
            surest = log_scores.amax(dim=1)
            # What is not a number is no proposal.
            surest = torch.where(surest.isnan(), -torch.inf, surest)
            surest, rows = surest.topk(min(_CANDIDATES, len(surest)))
            boxes = Boxes(
                self.box2box_transform.apply_deltas(
                    deltas[rows].float(), dense.anchors.tensor[rows]
                )
            )
            finite = surest.isfinite() & boxes.tensor.isfinite().all(dim=1)
            boxes = Boxes(torch.where(finite[:, None], boxes.tensor, 0.0))
            boxes.clip(size)
            usable = (finite & boxes.nonempty()).nonzero()[:, 0]
            together = torch.zeros_like(usable)
            kept = batched_nms(boxes.tensor[usable], surest[usable], together, _IOU)
            kept = usable[kept[:count]]
            found.append(
                Instances(tuple(size), proposal_boxes=boxes[kept], anchor_index=rows[kept])
            )
        return found
