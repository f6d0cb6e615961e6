# SPDX-License-Identifier: Apache-2.0
"""Instrumented detectors: stock parameters and detections, plus a probe of both heads."""

from .backbone import build_tiny_resnet_fpn_backbone
from .instrument import UnsupportedArchitectureError, instrument_config
from .meta_arch import InstrumentedRCNN
from .module_groups import module_group_parameters, renewable_modules
from .probe import ProbeOutput
from .proposal_generator import InstrumentedRPN
from .roi_heads import InstrumentedStandardROIHeads

__all__ = [
    "InstrumentedRCNN",
    "InstrumentedRPN",
    "InstrumentedStandardROIHeads",
    "ProbeOutput",
    "UnsupportedArchitectureError",
    "build_tiny_resnet_fpn_backbone",
    "instrument_config",
    "module_group_parameters",
    "renewable_modules",
]
