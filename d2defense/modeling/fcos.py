# SPDX-License-Identifier: Apache-2.0
"""FCOS, as Detectron2 has it, built from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes
from torch import Tensor

from .adapter import adapts
from .one_stage import DensePredictions, InstrumentedDense
from .regions import NUM_ANCHORS

# What a level of the pyramid too far costs, in distances between its locations.
_LEVEL_COST = 4.0
# A location speaks for boxes that reach this far from it, in strides: the middle of the range of
# 4 to 8 within which Detectron2's FCOS assigns objects to a level.
_REACH = 6.0


@adapts("FCOS")
class InstrumentedFCOS(InstrumentedDense, FCOS):
    """Detectron2's FCOS, parameters and detections unchanged, that can be probed.

    Detectron2 builds it from a LazyConfig alone; here it is built from ``MODEL.FCOS``.
    """

    classes_key: ClassVar[str] = "MODEL.FCOS.NUM_CLASSES"

    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of FCOS."""
        if cfg.MODEL.DESCRIPTION:
            return super().from_config(cfg)
        node = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in node.IN_FEATURES]
        head = FCOSHead(
            input_shape=shapes,
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            num_classes=node.NUM_CLASSES,
            prior_prob=node.PRIOR_PROB,
            norm=node.NORM,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def _predictions(
        self, features: Sequence[Tensor], predictions: list[list[Tensor]]
    ) -> DensePredictions:
        """The score of a class is the geometric mean of its sigmoid and the centerness's."""
        logits, deltas, centerness = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        of_class = F.logsigmoid(torch.cat(logits, dim=1).float())
        of_center = F.logsigmoid(torch.cat(centerness, dim=1).float())
        return DensePredictions(
            (of_class + of_center) / 2,
            torch.cat(deltas, dim=1),
            Boxes.cat(self.anchor_generator(features)),
        )

    def _anchors_of(self, regions: Tensor, anchors: Boxes) -> Tensor:
        """The locations nearest to the middle, on the level of the pyramid for boxes of the size.

        A location has a box of the size of its stride.
        """
        boxes = Boxes(regions)
        strides = anchors.tensor[:, 2] - anchors.tensor[:, 0]
        away = (boxes.get_centers()[:, None] - anchors.get_centers()[None]).abs().amax(dim=2)
        reach = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]).amax(dim=1).clamp(min=1) / 2
        level = (reach[:, None] / (_REACH * strides)).log2().abs()
        cost = away / strides + _LEVEL_COST * level
        return cost.topk(min(NUM_ANCHORS, len(anchors)), dim=1, largest=False).indices
