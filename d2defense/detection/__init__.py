# SPDX-License-Identifier: Apache-2.0
"""From a detector and clean images to a verdict."""

from .bank import (
    DEFAULT_BANK,
    TriggerBankError,
    default_bank,
    load_bank,
    select_triggers,
)
from .calibration import (
    Calibration,
    CalibrationError,
    calibration_from_config,
    check_false_alarm_rate,
    load_calibration,
)
from .classes import ClassMap, ClassMapError, class_indices, load_class_map
from .decisions.base import Decision
from .images import CleanImage, CleanImages, load_clean_images, sample_records
from .observing import observe, observe_batches, stamped
from .scan_images import ScanImages
from .scanner import Inspection, inspect_detector
from .settings import ScanSettings
from .subject import Subject, open_references, open_subject
from .survey import Profile, Survey, survey_detector
from .verdict import Verdict

__all__ = [
    "DEFAULT_BANK",
    "Calibration",
    "CalibrationError",
    "ClassMap",
    "ClassMapError",
    "CleanImage",
    "CleanImages",
    "Decision",
    "Inspection",
    "Profile",
    "ScanImages",
    "ScanSettings",
    "Subject",
    "Survey",
    "TriggerBankError",
    "Verdict",
    "calibration_from_config",
    "check_false_alarm_rate",
    "class_indices",
    "default_bank",
    "inspect_detector",
    "load_bank",
    "load_calibration",
    "load_class_map",
    "load_clean_images",
    "observe",
    "observe_batches",
    "open_references",
    "open_subject",
    "sample_records",
    "select_triggers",
    "stamped",
    "survey_detector",
]
