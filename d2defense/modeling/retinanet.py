# SPDX-License-Identifier: Apache-2.0
"""RetinaNet, as Detectron2 has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes
from torch import Tensor

from .adapter import adapts
from .one_stage import DensePredictions, InstrumentedDense
from .regions import nearest_anchors


@adapts("RetinaNet")
class InstrumentedRetinaNet(InstrumentedDense, RetinaNet):
    """Detectron2's RetinaNet, parameters and detections unchanged, that can be probed."""

    classes_key: ClassVar[str] = "MODEL.RETINANET.NUM_CLASSES"

    def _predictions(
        self, features: Sequence[Tensor], predictions: list[list[Tensor]]
    ) -> DensePredictions:
        """The score of a class is the sigmoid of its logit."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        return DensePredictions(
            F.logsigmoid(torch.cat(logits, dim=1).float()),
            torch.cat(deltas, dim=1),
            Boxes.cat(self.anchor_generator(features)),
        )

    def _anchors_of(self, regions: Tensor, anchors: Boxes) -> Tensor:
        """Those of largest overlap, as for an RPN."""
        return nearest_anchors(regions, anchors)
