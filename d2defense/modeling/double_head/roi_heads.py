# SPDX-License-Identifier: Apache-2.0
"""ROI heads whose box head is a double one; mask and keypoint heads stay the stock ones."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads

from .box_head import DoubleHead
from .predictor import DoubleHeadOutputLayers


@ROI_HEADS_REGISTRY.register()
class DoubleHeadROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads with the box head of Double-Head R-CNN.

    ``MODEL.ROI_BOX_HEAD.NAME`` must be "DoubleHead".

    Raises:
        ValueError: it is another box head.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        box = super()._init_box_head(cfg, input_shape)
        head = box["box_head"]
        if not isinstance(head, DoubleHead):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.NAME is {cfg.MODEL.ROI_BOX_HEAD.NAME!r}; DoubleHeadROIHeads "
                "needs DoubleHead"
            )
        box["box_predictor"] = DoubleHeadOutputLayers(
            cfg, head.fc_head.output_shape, head.conv_head.output_shape
        )
        return box
