# SPDX-License-Identifier: Apache-2.0
"""Instrumented detectors: stock parameters and detections, plus a probe of what they think."""

from .adapter import (
    InstrumentedDetector,
    UnsupportedArchitectureError,
    number_of_classes,
    set_number_of_classes,
)
from .backbone import build_tiny_resnet_backbone, build_tiny_resnet_fpn_backbone
from .batches import BatchSize, alike, kept_for_backward
from .described import DescriptionError
from .double_head import DoubleHeadROIHeads
from .fcos import InstrumentedFCOS
from .folding import folded
from .instrument import instrument_config
from .meta_arch import InstrumentedRCNN
from .module_groups import (
    classification_modules,
    module_group_parameters,
    proposal_modules,
    resettable_modules,
)
from .panoptic import InstrumentedPanopticFPN
from .probe import BoxFeatures, Heard, ProbeOutput
from .proposal_generator import InstrumentedRPN
from .regions import Opinion, RegionOutput
from .retinanet import InstrumentedRetinaNet
from .roi_heads import (
    InstrumentedCascadeROIHeads,
    InstrumentedDoubleHeadROIHeads,
    InstrumentedRes5ROIHeads,
    InstrumentedStandardROIHeads,
)

__all__ = [
    "BatchSize",
    "BoxFeatures",
    "DescriptionError",
    "DoubleHeadROIHeads",
    "Heard",
    "InstrumentedCascadeROIHeads",
    "InstrumentedDetector",
    "InstrumentedDoubleHeadROIHeads",
    "InstrumentedFCOS",
    "InstrumentedPanopticFPN",
    "InstrumentedRCNN",
    "InstrumentedRPN",
    "InstrumentedRes5ROIHeads",
    "InstrumentedRetinaNet",
    "InstrumentedStandardROIHeads",
    "Opinion",
    "ProbeOutput",
    "RegionOutput",
    "UnsupportedArchitectureError",
    "alike",
    "build_tiny_resnet_backbone",
    "build_tiny_resnet_fpn_backbone",
    "classification_modules",
    "folded",
    "instrument_config",
    "kept_for_backward",
    "module_group_parameters",
    "number_of_classes",
    "proposal_modules",
    "resettable_modules",
    "set_number_of_classes",
]
