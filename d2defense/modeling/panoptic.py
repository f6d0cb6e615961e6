# SPDX-License-Identifier: Apache-2.0
"""Panoptic FPN: a Mask R-CNN beside a segmentation of the background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.modeling.meta_arch import PanopticFPN
from torch import Tensor

from .adapter import Groups, adapts
from .meta_arch import InstrumentedRCNN


@adapts("PanopticFPN")
class InstrumentedPanopticFPN(InstrumentedRCNN, PanopticFPN):
    """Detectron2's PanopticFPN, parameters and inference unchanged, that can be probed.

    What is probed and judged are its detections; the segmentation is left alone. Trained on images
    without one, as a defender's are, it learns from the objects alone.
    """

    @property
    def resettable_modules(self) -> Groups:
        """Also the head of the segmentation."""
        return {**super().resettable_modules, "sem_seg_head": ("sem_seg_head.",)}

    def run_shapes(self, features: dict[str, Tensor]) -> Sequence[Tensor]:
        """Also through the segmentation, which is enlarged last; see the base class."""
        segmented, _ = self.sem_seg_head(features)
        return *super().run_shapes(features), segmented

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As stock; in training on images without a segmentation, the losses of the objects."""
        if self.training and "sem_seg" not in batched_inputs[0]:
            return self.losses_and_features(batched_inputs)[0]
        return PanopticFPN.forward(self, batched_inputs)
