# SPDX-License-Identifier: Apache-2.0
"""What the study reads off its measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Evaluation = Mapping[str, Any]


def found(evaluation: Evaluation | None, condition: str = "triggered") -> float | None:
    """Share of objects found, 0..1; None for no evaluation."""
    return evaluation and evaluation[condition]["objects_found"]


def recovered(
    before: Evaluation | None, after: Evaluation | None, clean: Evaluation | None
) -> float | None:
    """Of the objects found that the attack took, the share that a repair gave back.

    ``(after - before) / (clean - before)``, objects found under the trigger by the backdoored
    detector, the repaired one, and a clean one of the same kind and seed under the same trigger.
    More than 1 where the repaired detector finds more than the clean one.

    Returns:
        None where something is not measured, or the attack took nothing.
    """
    shares = [found(evaluation) for evaluation in (before, after, clean)]
    if any(share is None for share in shares):
        return None
    start, end, whole = shares
    return (end - start) / (whole - start) if whole > start else None
