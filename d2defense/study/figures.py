# SPDX-License-Identifier: Apache-2.0
"""Curves of a study."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLORS = ("#4c566a", "#c2410c", "#0f766e", "#7c3aed", "#ca8a04", "#1d4ed8")
_DPI = 130


class Curve(NamedTuple):
    """Points of one line."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def of(cls, points: Mapping[float, float | None]) -> Curve:
        """Of those that were measured."""
        known = {x: y for x, y in points.items() if y is not None}
        return cls(tuple(known), tuple(known.values()))


def draw_curves(
    curves: Mapping[str, Curve],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float],
    logarithmic: bool = False,
) -> bytes:
    """Lines with a mark at each point.

    Two curves whose labels differ only after a comma, "vanilla, clean" and "vanilla, triggered",
    share a colour; the first is drawn dashed.

    Args:
        curves: by label.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        y_range: lowest and highest value shown.
        logarithmic: whether the horizontal axis is.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(6.6, 4.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    families = list(dict.fromkeys(label.partition(",")[0] for label in curves))
    paired = len(families) < len(curves)
    for label, curve in curves.items():
        family = families.index(label.partition(",")[0])
        dashed = paired and label.endswith("clean")
        axis.plot(
            curve.x,
            curve.y,
            label=label,
            color=_COLORS[family % len(_COLORS)],
            linestyle="--" if dashed else "-",
            marker="o",
            markersize=3.5,
        )
    if logarithmic:
        axis.set_xscale("log")
        ticks = sorted({x for curve in curves.values() for x in curve.x})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axis.set_ylim(*y_range)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(color="#e6e9ee", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_roc(curves: Mapping[str, Curve]) -> bytes:
    """ROC curves as steps, on axes of equal scale.

    Args:
        curves: false-alarm and true-positive rates by label.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(5.4, 5.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#cbd2da", linewidth=1)
    for index, (label, curve) in enumerate(curves.items()):
        color = _COLORS[index % len(_COLORS)]
        axis.step(curve.x, curve.y, where="post", label=label, color=color, linewidth=2)
    axis.set_aspect("equal")
    axis.set_xlim(-0.01, 1)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("false-alarm rate")
    axis.set_ylabel("true-positive rate")
    axis.grid(color="#e6e9ee", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()
