# SPDX-License-Identifier: Apache-2.0
"""From a detector and clean images to a verdict."""

from .bank import (
    DEFAULT_BANK,
    TriggerBankError,
    default_bank,
    load_bank,
    select_triggers,
)
from .calibration import Calibration, CalibrationError, load_calibration
from .classes import ClassMap, ClassMapError, class_indices, load_class_map
from .images import CleanImage, CleanImages, load_clean_images, sample_records
from .observe import (
    STATISTICS,
    Observation,
    ObservationSettings,
    observe,
    observe_batches,
    stamped,
)
from .scanner import Inspection, ScanSettings, inspect_detector, score_detector
from .verdict import Verdict

__all__ = [
    "DEFAULT_BANK",
    "STATISTICS",
    "Calibration",
    "CalibrationError",
    "ClassMap",
    "ClassMapError",
    "CleanImage",
    "CleanImages",
    "Inspection",
    "Observation",
    "ObservationSettings",
    "ScanSettings",
    "TriggerBankError",
    "Verdict",
    "class_indices",
    "default_bank",
    "inspect_detector",
    "load_bank",
    "load_calibration",
    "load_class_map",
    "load_clean_images",
    "observe",
    "observe_batches",
    "sample_records",
    "score_detector",
    "select_triggers",
    "stamped",
]
