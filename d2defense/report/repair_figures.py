# SPDX-License-Identifier: Apache-2.0
"""The figures of a repair: what a detector makes of the same images before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .examples import Example
from .figures import draw_examples, draw_heatmaps, draw_histograms


@dataclass(frozen=True)
class ShownDetector:
    """What figures show of one detector.

    Attributes:
        label: what they call it, each detector otherwise.
        result: of its scan.
        examples: (clean, triggered) of each image, one image or more.
    """

    label: str
    result: dict[str, Any]
    examples: list[tuple[Example, Example]]


def draw_repair(
    before: ShownDetector, after: ShownDetector, beside: ShownDetector | None, epsilon: float
) -> dict[str, bytes]:
    """PNG files by the names that :func:`d2defense.report.repair_page.write_repair_report` knows.

    Args:
        before: the detector before the repair.
        after: the same one after it.
        beside: a clean detector to compare with, if there is one.
        epsilon: of the scans, drawn in the histograms.

    Returns:
        ``examples_before``, ``examples_after``, ``heatmaps`` of the first image, and
        ``histograms`` unless no scan has one.
    """
    compared = [before, after] if beside is None else [beside, before, after]
    heatmaps = {detector.label: detector.examples[0][1] for detector in compared}
    return {
        **_histograms(compared, epsilon),
        "heatmaps": draw_heatmaps(heatmaps, "Inconsistency on a triggered image"),
        "examples_before": draw_examples(before.examples, before.label),
        "examples_after": draw_examples(after.examples, after.label),
    }


def _histograms(detectors: Sequence[ShownDetector], epsilon: float) -> dict[str, bytes]:
    # A scan that failed has no histogram, and that of an earlier version may have other bins.
    scanned = {
        detector.label: detector.result["histogram"]
        for detector in detectors
        if detector.result["histogram"]
    }
    if not scanned:
        return {}
    *_, edges = (histogram["edges"] for histogram in scanned.values())
    panels = {
        label: {"clean images": histogram["clean"], "worst patch": histogram["triggered"]}
        for label, histogram in scanned.items()
        if histogram["edges"] == edges
    }
    title = "Inconsistency of the proposals"
    return {"histograms": draw_histograms(edges, panels, title, epsilon)}
