# SPDX-License-Identifier: Apache-2.0
"""Double-Head R-CNN (Wu et al., CVPR 2020, arXiv 1904.06493), which Detectron2 does not have.

A fully connected head classifies proposals, a convolution head regresses their boxes.
"""

from .box_head import DoubleHead
from .predictor import DoubleHeadOutputLayers
from .roi_heads import DoubleHeadROIHeads

__all__ = ["DoubleHead", "DoubleHeadOutputLayers", "DoubleHeadROIHeads"]
