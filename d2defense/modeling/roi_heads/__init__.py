# SPDX-License-Identifier: Apache-2.0
"""ROI heads that can be probed, one file for each kind."""

from .cascade import InstrumentedCascadeROIHeads
from .double_head import InstrumentedDoubleHeadROIHeads
from .probing import ProbedROIHeads
from .res5 import InstrumentedRes5ROIHeads
from .standard import InstrumentedStandardROIHeads

__all__ = [
    "InstrumentedCascadeROIHeads",
    "InstrumentedDoubleHeadROIHeads",
    "InstrumentedRes5ROIHeads",
    "InstrumentedStandardROIHeads",
    "ProbedROIHeads",
]
