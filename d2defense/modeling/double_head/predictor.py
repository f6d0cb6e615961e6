# SPDX-License-Identifier: Apache-2.0
"""What both heads predict, their losses and the fused score (arXiv 1904.06493, section 5)."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn


class DoubleHeadPredictions(NamedTuple):
    """Predictions of both heads for N proposals; None where a head lacks the unfocused task."""

    fc_scores: Tensor
    """(N, K + 1) class logits of the fully connected head."""
    conv_deltas: Tensor
    """(N, 4K) or (N, 4) box deltas of the convolution head."""
    conv_scores: Tensor | None
    """(N, K + 1) class logits of the convolution head."""
    fc_deltas: Tensor | None
    """(N, 4K) or (N, 4) box deltas of the fully connected head."""


class DoubleHeadOutputLayers(FastRCNNOutputLayers):
    """Detectron2's output layers, classification on one head's features, regression on the other's.

    With ``unfocused_supervision`` (Double-Head-Ext) each head also learns the other's task. The
    loss is that of equations 1 to 3::

        L = w_fc (l_fc L_cls_fc + (1 - l_fc) L_reg_fc)
          + w_conv ((1 - l_conv) L_cls_conv + l_conv L_reg_conv)

    with l_fc = l_conv = 1 without it. With ``fused_score`` detections are scored by both
    classifiers, ``s = s_fc + s_conv (1 - s_fc)`` (equation 4).

    Args:
        fc_shape: of the fully connected head's features.
        conv_shape: of the convolution head's features.
        head_weights: w_fc and w_conv.
        focus: l_fc and l_conv.
        unfocused_supervision: add the unfocused tasks.
        fused_score: score detections by both classifiers.
        **kwargs: of :class:`FastRCNNOutputLayers`.

    Raises:
        ValueError: a fused score without a second classifier.
    """

    @configurable
    def __init__(
        self,
        fc_shape: ShapeSpec,
        conv_shape: ShapeSpec,
        *,
        head_weights: tuple[float, float] = (2.0, 2.5),
        focus: tuple[float, float] = (0.7, 0.8),
        unfocused_supervision: bool = False,
        fused_score: bool = False,
        **kwargs: Any,
    ) -> None:
        if fused_score and not unfocused_supervision:
            raise ValueError("a fused score needs the second classifier of unfocused supervision")
        super().__init__(fc_shape, **kwargs)
        num_deltas = self.bbox_pred.out_features
        fc_bbox_pred, self.bbox_pred = (
            self.bbox_pred,
            _linear(conv_shape.channels, num_deltas, std=0.001),
        )
        self.head_weights = head_weights
        self.focus = focus if unfocused_supervision else (1.0, 1.0)
        self.fused_score = fused_score
        self.unfocused_supervision = unfocused_supervision
        if unfocused_supervision:
            self.bbox_pred_fc = fc_bbox_pred
            self.cls_score_conv = _linear(conv_shape.channels, self.num_classes + 1, std=0.01)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, fc_shape: ShapeSpec, conv_shape: ShapeSpec
    ) -> dict[str, Any]:
        """Arguments from ``MODEL.ROI_BOX_HEAD`` and ``MODEL.ROI_DOUBLE_HEAD``."""
        node = cfg.MODEL.ROI_DOUBLE_HEAD
        arguments = super().from_config(cfg, fc_shape)
        del arguments["input_shape"]
        return arguments | {
            "fc_shape": fc_shape,
            "conv_shape": conv_shape,
            "head_weights": tuple(node.HEAD_WEIGHTS),
            "focus": tuple(node.FOCUS),
            "unfocused_supervision": node.UNFOCUSED_SUPERVISION,
            "fused_score": node.FUSED_SCORE,
        }

    def forward(self, x: tuple[Tensor, Tensor]) -> DoubleHeadPredictions:
        """Predictions from the features that :class:`DoubleHead` returns."""
        fc_features, conv_features = x
        extended = self.unfocused_supervision
        return DoubleHeadPredictions(
            self.cls_score(fc_features),
            self.bbox_pred(conv_features),
            self.cls_score_conv(conv_features) if extended else None,
            self.bbox_pred_fc(fc_features) if extended else None,
        )

    def losses(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """The weighted losses of both heads, by name.

        Args:
            predictions: return value of :meth:`forward`.
            proposals: with ``proposal_boxes``, ``gt_boxes`` and ``gt_classes``.
        """
        fc_weight, conv_weight = self.head_weights
        fc_focus, conv_focus = self.focus
        losses = {}
        if self.unfocused_supervision:
            unfocused = super().losses((predictions.conv_scores, predictions.fc_deltas), proposals)
            losses["loss_cls_conv"] = conv_weight * (1 - conv_focus) * unfocused["loss_cls"]
            losses["loss_box_reg_fc"] = fc_weight * (1 - fc_focus) * unfocused["loss_box_reg"]
        # Last, so that the accuracy which Detectron2 logs is that of the head in charge.
        focused = super().losses((predictions.fc_scores, predictions.conv_deltas), proposals)
        losses["loss_cls"] = fc_weight * fc_focus * focused["loss_cls"]
        losses["loss_box_reg"] = conv_weight * conv_focus * focused["loss_box_reg"]
        return losses

    def predict_boxes(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Boxes of the convolution head, as the stock method returns them."""
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Boxes of the convolution head for the true classes, as the stock method returns them."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(
        self, predictions: DoubleHeadPredictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Class probabilities (Ri, K + 1) for each image, fused if so configured."""
        probabilities = super().predict_probs(predictions[:2], proposals)
        if not self.fused_score:
            return probabilities
        others = super().predict_probs((predictions.conv_scores, None), proposals)
        return tuple(fc + conv * (1 - fc) for fc, conv in zip(probabilities, others, strict=True))


def _linear(in_features: int, out_features: int, std: float) -> nn.Linear:
    """A layer initialised as Detectron2's output layers are."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, 0)
    return layer
