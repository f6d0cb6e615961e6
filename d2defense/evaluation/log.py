# SPDX-License-Identifier: Apache-2.0
"""What the log says of an attack."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from d2defense.statistics import why_not_taken

from .coverage import describe_coverage

logger = logging.getLogger(__name__)


def report_attack(
    dataset_name: str, results: Mapping[str, Mapping[str, float]], attack: str
) -> None:
    """Log what an attack does to a detector, on what it could not be measured, and if it took.

    Args:
        dataset_name: what was evaluated on.
        results: of :class:`AttackEvaluator`.
        attack: name of the effect that the detector was trained for; "" for none.
    """
    before, after, rates = (
        results[task] for task in ("statistics", "triggered_statistics", "attack")
    )
    changes = [
        f"{label} {before[name]:.3f} -> {after[name]:.3f}"
        for label, name in (
            ("objects found", "objects_found"),
            ("extra detections", "extra_detections"),
            ("tau", "tau"),
            ("gap", "gap"),
        )
    ]
    shares = [
        f"{label} {rates[name]:.3f}"
        for label, name in (("ASR", "asr"), ("TDR", "tdr"), ("retain rate", "retain_rate"))
        # An effect without victims has no TDR, one on all classes no retain rate.
        if name == "asr" or not math.isnan(rates[name])
    ]
    logger.info(
        "%s, clean -> triggered images: %s; %s",
        dataset_name,
        ", ".join(changes),
        ", ".join(shares),
    )
    if left_out := describe_coverage(results["coverage"]):
        logger.info("%s: %s", dataset_name, left_out)
    reason = why_not_taken(None if math.isnan(rates["asr"]) else rates["asr"])
    if attack and reason:
        logger.warning("attack %r did not take on %s: %s", attack, dataset_name, reason)
