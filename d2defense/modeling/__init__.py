# SPDX-License-Identifier: Apache-2.0
"""Instrumented detectors: stock parameters and detections, plus a probe of both heads."""

from .backbone import build_tiny_resnet_backbone, build_tiny_resnet_fpn_backbone
from .batches import BatchSize, alike, kept_for_backward
from .double_head import DoubleHeadROIHeads
from .instrument import UnsupportedArchitectureError, instrument_config
from .meta_arch import InstrumentedRCNN
from .module_groups import (
    classification_modules,
    module_group_parameters,
    resettable_modules,
)
from .probe import ProbeOutput
from .proposal_generator import InstrumentedRPN
from .regions import RegionOutput
from .roi_heads import (
    InstrumentedCascadeROIHeads,
    InstrumentedDoubleHeadROIHeads,
    InstrumentedRes5ROIHeads,
    InstrumentedStandardROIHeads,
)

__all__ = [
    "BatchSize",
    "DoubleHeadROIHeads",
    "InstrumentedCascadeROIHeads",
    "InstrumentedDoubleHeadROIHeads",
    "InstrumentedRCNN",
    "InstrumentedRPN",
    "InstrumentedRes5ROIHeads",
    "InstrumentedStandardROIHeads",
    "ProbeOutput",
    "RegionOutput",
    "UnsupportedArchitectureError",
    "alike",
    "build_tiny_resnet_backbone",
    "build_tiny_resnet_fpn_backbone",
    "classification_modules",
    "instrument_config",
    "kept_for_backward",
    "module_group_parameters",
    "resettable_modules",
]
