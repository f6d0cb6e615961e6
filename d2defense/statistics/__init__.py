# SPDX-License-Identifier: Apache-2.0
"""What is measured of a detector on images: sums per image, and which objects were found."""

from .ability import found_terms, object_rank_terms
from .found import (
    IOU_THRESHOLD,
    SCORE_THRESHOLD,
    extra_detections,
    found_objects,
    why_not_taken,
)
from .objects import annotated_objects, at_input_size, bears_trigger
from .observation import (
    DEPLOYED_STATISTICS,
    OBJECT_STATISTICS,
    OF_OBJECTNESS,
    PRECISIONS,
    STATISTICS,
    Observation,
    ObservationSettings,
    all_proposals_tau_terms,
    deployed_terms,
    reduce_probe,
)
from .terms import (
    Terms,
    confident_d,
    confident_d_terms,
    gap,
    gap_terms,
    mean_foreground,
    mean_objectness,
    target_mean_terms,
    tau,
    tau_terms,
    true_class_terms,
    unmatched_foreground_terms,
)

__all__ = [
    "DEPLOYED_STATISTICS",
    "IOU_THRESHOLD",
    "OBJECT_STATISTICS",
    "OF_OBJECTNESS",
    "PRECISIONS",
    "SCORE_THRESHOLD",
    "STATISTICS",
    "Observation",
    "ObservationSettings",
    "Terms",
    "all_proposals_tau_terms",
    "annotated_objects",
    "at_input_size",
    "bears_trigger",
    "confident_d",
    "confident_d_terms",
    "deployed_terms",
    "extra_detections",
    "found_objects",
    "found_terms",
    "gap",
    "gap_terms",
    "mean_foreground",
    "mean_objectness",
    "object_rank_terms",
    "reduce_probe",
    "target_mean_terms",
    "tau",
    "tau_terms",
    "true_class_terms",
    "unmatched_foreground_terms",
    "why_not_taken",
]
