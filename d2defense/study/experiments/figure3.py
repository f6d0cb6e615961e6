# SPDX-License-Identifier: Apache-2.0
"""Figure 3: where RPN and box head disagree."""

from __future__ import annotations

from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.report.figures import draw_histograms

from ..plan import Plan
from ..rows import StudyRows
from ..steps import Step
from .base import Experiment, Section


@EXPERIMENT_REGISTRY.register("figure3")
class Figure3(Experiment):
    """Heat maps on an image, and histograms of the inconsistency (the paper, section 4.2)."""

    title = "Figure 3: inconsistency"
    place = 4

    def steps(self, plan: Plan) -> list[Step]:
        """Heat maps of a clean and a backdoored detector, and their scans."""
        clean, backdoored = plan.of_kind(plan.main_kind)[0]
        return [
            plan.heatmaps(clean=clean, backdoored=backdoored),
            plan.scan(clean),
            plan.scan(backdoored),
        ]

    def report(self, plan: Plan, rows: StudyRows) -> Section:
        """The two figures; the first is drawn by its step."""
        clean, backdoored = plan.of_kind(plan.main_kind)[0]
        figures = {}
        maps = rows.content(plan.heatmaps(clean=clean, backdoored=backdoored))
        if maps is not None:
            figures["figure3_heatmaps"] = maps
        panels, edges = {}, None
        for nature, detector in (("clean", clean), ("backdoored", backdoored)):
            histogram = rows.setting(plan.scan(detector), "histogram")
            if histogram:
                worst = rows.setting(plan.scan(detector), "worst_trigger")
                edges = histogram["edges"]
                panels[f"{nature} detector"] = {
                    "clean images": histogram["clean"],
                    f"{worst} patch": histogram["triggered"],
                }
        if len(panels) == 2:
            figures["figure3_histograms"] = draw_histograms(
                edges, panels, "Inconsistency of the proposals"
            )
        return Section(
            self.title,
            f"{plan.main_kind.title}, seed {clean.seed}. Heat maps: the largest inconsistency of "
            "the proposals that cover each pixel of an image with the paper's trigger on every "
            "object. Histograms: all proposals of the scan's images.",
            figures=figures,
        )
