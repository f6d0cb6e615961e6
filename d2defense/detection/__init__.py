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
from .images import CleanImage, load_clean_images, sample_records
from .observe import Observation, ObservationSettings, observe, stamped
from .scanner import Inspection, ScanSettings, inspect_detector, score_detector
from .verdict import Verdict

__all__ = [
    "DEFAULT_BANK",
    "Calibration",
    "CalibrationError",
    "CleanImage",
    "Inspection",
    "Observation",
    "ObservationSettings",
    "ScanSettings",
    "TriggerBankError",
    "Verdict",
    "default_bank",
    "inspect_detector",
    "load_bank",
    "load_calibration",
    "load_clean_images",
    "observe",
    "sample_records",
    "score_detector",
    "select_triggers",
    "stamped",
]
