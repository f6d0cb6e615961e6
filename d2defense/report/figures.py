# SPDX-License-Identifier: Apache-2.0
"""Figures of a scan, as PNG bytes: examples, heat maps and histograms of inconsistency, bars.

Drawn with matplotlib's object interface and its Agg canvas: nothing here touches pyplot's global
state or needs a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from d2defense import text
from d2defense.report.examples import Example
from d2defense.report.reached import most_reached
from d2defense.statistics import found as matching

# Okabe and Ito's palette, told apart by every common form of colour vision; found and missed
# objects differ in line style besides.
FOUND_COLOR = "#009E73"
MISSED_COLOR = "#D55E00"
PROPOSAL_COLOR = "#56B4E9"
DETECTION_COLOR = "#F0E442"
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

_HEAT_COLORS = "inferno"
_HEAT_OPACITY = 0.72
_MAX_BYTES = 300_000
_DPI = 180.0
_MIN_SCALE = 0.4
_INK = "#1f2933"
_MUTED = "#5f6b7a"
_STYLE = {"color": _INK, "fontfamily": "DejaVu Sans"}


def inconsistency_map(
    shape: tuple[int, int], boxes: ArrayLike, s: ArrayLike
) -> NDArray[np.float64]:
    """The largest inconsistency among the boxes that cover each pixel (the paper's Figure 3).

    A box covers the pixels whose centres lie in it; a pixel's centre is at (x + 0.5, y + 0.5).

    Args:
        shape: (H, W).
        boxes: float [N, 4], pixels XYXY absolute; parts outside the image, and boxes with values
            that are not finite, are ignored.
        s: float [N], |p - q| of each box.

    Returns:
        float [H, W], 0 where no box is.

    Raises:
        ValueError: ``boxes`` and ``s`` differ in length.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    s = np.asarray(s, dtype=np.float64).reshape(-1)
    if len(boxes) != len(s):
        raise ValueError(f"{len(boxes)} boxes for {len(s)} values of s")
    height, width = shape
    result = np.zeros(shape)
    usable = np.isfinite(boxes).all(axis=1) & np.isfinite(s)
    limits = np.array([width, height, width, height])
    corners = np.clip(np.ceil(boxes[usable] - 0.5), 0, limits).astype(int)
    for (left, top, right, bottom), value in zip(corners, s[usable], strict=True):
        covered = result[top:bottom, left:right]
        np.maximum(covered, value, out=covered)
    return result


def found_objects(target_boxes: ArrayLike, detection_boxes: ArrayLike) -> NDArray[np.bool_]:
    """Which true objects one of the drawn detections finds, of whatever class, bool [M].

    Args:
        target_boxes: float [M, 4], pixels XYXY absolute.
        detection_boxes: float [D, 4], pixels XYXY absolute; all of them count as confident.
    """
    targets = torch.as_tensor(np.asarray(target_boxes, dtype=np.float32).reshape(-1, 4))
    detections = torch.as_tensor(np.asarray(detection_boxes, dtype=np.float32).reshape(-1, 4))
    count = len(detections)
    return matching.found_objects(
        targets, None, detections, torch.zeros(count, dtype=torch.int64), torch.ones(count)
    ).numpy()


def draw_examples(pairs: Sequence[tuple[Example, Example]], title: str, topk: int = 12) -> bytes:
    """One row an image: clean detections | triggered proposals and detections | heat map.

    Missed true objects are outlined dashed and red, found ones green; the heat map shows
    :func:`inconsistency_map` of the ``topk`` proposals of highest objectness over the triggered
    image.

    Args:
        pairs: the same image without and with the trigger.
        title: shown above.
        topk: number of proposals drawn and used by the heat map.

    Returns:
        A PNG file.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("no examples to draw")
    shapes = [example.image.shape for pair in pairs for example in pair]
    tallest = min(2.0, max(height / width for height, width, _ in shapes))
    figure = _figure(9.6, 0.95 + (0.32 + 2.8 * tallest) * len(pairs))
    axes = figure.subplots(len(pairs), 3, squeeze=False)
    for row, (clean, triggered) in zip(axes, pairs, strict=True):
        _show_image(row[0], clean.image)
        _draw_detections(row[0], clean)
        _show_image(row[1], triggered.image)
        _draw_proposals(row[1], triggered, topk)
        _draw_detections(row[1], triggered)
        _show_heat(row[2], triggered, topk)
        row[0].set_xlabel(_describe_found(clean), color=_MUTED, fontsize=9)
        row[1].set_xlabel(_describe_found(triggered), color=_MUTED, fontsize=9)
        row[2].set_xlabel(f"top {topk} proposals", color=_MUTED, fontsize=9)
    for axis, heading in zip(
        axes[0],
        ("Clean image", "With the trigger", "Inconsistency |p \N{MINUS SIGN} q|"),
        strict=True,
    ):
        axis.set_title(heading, fontsize=11, **_STYLE)
    _heat_bar(figure, axes[:, 2].tolist())
    _box_legend(figure)
    _title(figure, title)
    return _png(figure)


def draw_heatmaps(examples: Mapping[str, Example], title: str, topk: int = 12) -> bytes:
    """Heat maps side by side, one a label, as in the paper's Figure 3.

    Args:
        examples: what each model made of the (same, triggered) image, by label.
        title: shown above.
        topk: number of proposals of highest objectness that the map uses.

    Returns:
        A PNG file.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to draw")
    figure = _figure(0.8 + 3.6 * len(examples), 4.5)
    axes = figure.subplots(1, len(examples), squeeze=False)[0]
    for axis, (label, example) in zip(axes, examples.items(), strict=True):
        _show_heat(axis, example, topk)
        axis.set_title(_plain(label), fontsize=11, **_STYLE)
        axis.set_xlabel(_describe_found(example), color=_MUTED, fontsize=9)
    _heat_bar(figure, axes.tolist())
    _title(figure, title)
    return _png(figure)


def draw_histograms(
    edges: ArrayLike,
    counts: Mapping[str, ArrayLike | Mapping[str, ArrayLike]],
    title: str,
    epsilon: float = 0.1,
) -> bytes:
    """Densities of inconsistency s on a logarithmic axis, with the line of epsilon.

    Args:
        edges: float [B + 1], rising, 0..1.
        counts: by label the counts [B], all overlaid; or by panel title such a mapping, one panel
            each with shared axes.
        title: shown above.
        epsilon: the negligible-difference threshold below which tau ignores s.

    Returns:
        A PNG file.

    Raises:
        ValueError: there is nothing to draw, or counts do not fit the edges.
    """
    if not counts:
        raise ValueError("no histograms to draw")
    edges = np.asarray(edges, dtype=np.float64)
    panels = counts if all(isinstance(v, Mapping) for v in counts.values()) else {"": counts}
    densities = {
        panel: {label: _density(edges, values) for label, values in series.items()}
        for panel, series in panels.items()
    }
    positive = np.concatenate(
        [d[d > 0] for series in densities.values() for d in series.values()] or [np.empty(0)]
    )
    figure = _figure(6.4 if len(panels) == 1 else 0.6 + 4.5 * len(panels), 3.9)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    lines = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.")
    for axis, (panel, series) in zip(axes, densities.items(), strict=True):
        for index, (label, density) in enumerate(series.items()):
            color = SERIES_COLORS[index % len(SERIES_COLORS)]
            axis.stairs(density, edges, fill=True, color=color, alpha=0.22)
            axis.stairs(
                density,
                edges,
                color=color,
                linewidth=1.8,
                linestyle=lines[index % len(lines)],
                label=_plain(label),
            )
        axis.axvline(
            epsilon, color=_MUTED, linewidth=1.1, linestyle=":", label=f"epsilon = {epsilon:g}"
        )
        axis.set_xlim(edges[0], edges[-1])
        axis.set_xlabel("inconsistency s = |p \N{MINUS SIGN} q| of a proposal", **_STYLE)
        if panel:
            axis.set_title(_plain(panel), fontsize=11, **_STYLE)
        _plain_axes(axis)
        axis.legend(frameon=False, fontsize=9, labelcolor=_INK)
    if len(positive):
        # Shared axes: one call scales every panel.
        axes[0].set_ylim(positive.min() / 2, positive.max() * 3)
        axes[0].set_yscale("log")
    axes[0].set_ylabel("density (log scale)", **_STYLE)
    _title(figure, title)
    return _png(figure)


def draw_before_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> bytes:
    """Paired bars before and after the repair: AP50 clean, AP50 triggered, what went farthest.

    Args:
        before: ``{"clean": {"AP50": 0..100}, "triggered": {"AP50": 0..100}, "asr": 0..1,
            "search": {effect: 0..1}}``; a missing or null value is drawn as no bar.
        after: the same for the repaired model.

    Returns:
        A PNG file.
    """
    worst = most_reached(before, after)
    name = worst.label.replace(" by a", "\nby a").replace("attack ", "attack\n")
    groups = ("AP50\nclean images", "AP50\ntriggered images", name)
    figure = _figure(6.4, 3.9)
    axis = figure.subplots()
    width = 0.34
    for offset, label, values, reached, color, hatch in (
        (-0.5, "before", before, worst.before, MISSED_COLOR, "///"),
        (0.5, "after", after, worst.after, SERIES_COLORS[0], None),
    ):
        for index, value in enumerate(_bar_values(values, reached)):
            position = index + offset * (width + 0.04)
            axis.bar(
                position,
                value if value is not None else 0,
                width,
                label=label if index == 0 else None,
                facecolor=color,
                edgecolor="white",
                linewidth=0,
                hatch=hatch,
            )
            axis.annotate(
                text.number(value, 1),
                (position, value or 0),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                **_STYLE,
            )
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylim(0, 122)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel("percent", **_STYLE)
    _plain_axes(axis)
    axis.tick_params(axis="x", length=0)
    axis.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="upper center", ncols=2)
    _title(figure, "Before and after the repair")
    return _png(figure)


def _bar_values(values: Mapping[str, Any], reached: float | None) -> list[float | None]:
    return [
        (values.get("clean") or {}).get("AP50"),
        (values.get("triggered") or {}).get("AP50"),
        None if reached is None else 100.0 * reached,
    ]


def _density(edges: NDArray[np.float64], counts: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(counts, dtype=np.float64)
    if edges.ndim != 1 or counts.shape != (len(edges) - 1,):
        raise ValueError(f"{list(counts.shape)} counts for {list(edges.shape)} edges")
    total = counts.sum()
    return counts / (np.diff(edges) * total) if total > 0 else np.zeros_like(counts)


def _figure(width: float, height: float) -> Figure:
    """A figure of the given size in inches, laid out so that no labels collide."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(_plain(title), fontsize=12.5, fontweight="bold", **_STYLE)


def _plain(label: str) -> str:
    """A label from outside as matplotlib shows it: a dollar sign would start mathematics."""
    return text.shorten(label, 60).replace("$", r"\$")


def _plain_axes(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#b8c0ca")
    axis.tick_params(colors=_MUTED, labelsize=9)
    axis.grid(axis="y", color="#e6e9ee", linewidth=0.8)
    axis.set_axisbelow(True)


def _show_image(axis: Axes, image: NDArray[np.uint8]) -> None:
    """Show an image with pixel edges at whole coordinates, so that XYXY boxes lie right."""
    height, width = image.shape[:2]
    # Few pixels stay crisp squares, a photo is averaged down: both honest about the data.
    smooth = max(height, width) > 300
    axis.imshow(
        image,
        extent=(0, width, height, 0),
        interpolation="antialiased" if smooth else "nearest",
    )
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _show_heat(axis: Axes, example: Example, topk: int) -> None:
    best = _top_proposals(example, topk)
    heat = inconsistency_map(
        example.image.shape[:2], example.proposal_boxes[best], example.inconsistency[best]
    )
    grey = np.asarray(Image.fromarray(example.image).convert("L").convert("RGB"))
    _show_image(axis, grey)
    height, width = heat.shape
    axis.imshow(
        heat,
        extent=(0, width, height, 0),
        cmap=_HEAT_COLORS,
        vmin=0,
        vmax=1,
        alpha=_HEAT_OPACITY,
        interpolation="nearest",
    )
    _draw_targets(axis, example)


def _heat_bar(figure: Figure, axes: list[Axes]) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _HEAT_COLORS),
        ax=axes,
        fraction=0.046,
        pad=0.02,
        alpha=_HEAT_OPACITY,
        shrink=0.9 if len(axes) == 1 else 0.8,
        aspect=24,
    )
    bar.set_label("s = |p \N{MINUS SIGN} q|", **_STYLE)
    bar.ax.tick_params(colors=_MUTED, labelsize=8)
    bar.outline.set_visible(False)


def _top_proposals(example: Example, topk: int) -> NDArray[np.intp]:
    return np.argsort(-example.objectness, kind="stable")[:topk]


def _outline(axis: Axes, box: NDArray[np.float64], halo: bool = False, **style: Any) -> None:
    left, top, right, bottom = box
    if halo:
        # A white line under a coloured one keeps it visible on any background.
        under = {"linewidth": style["linewidth"] + 1.4, "edgecolor": "white", "alpha": 0.75}
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **under))
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))


def _draw_targets(axis: Axes, example: Example) -> None:
    found = found_objects(example.target_boxes, example.detection_boxes)
    for box, is_found in zip(example.target_boxes, found, strict=True):
        if is_found:
            _outline(axis, box, halo=True, edgecolor=FOUND_COLOR, linewidth=1.8)
        else:
            _outline(
                axis, box, halo=True, edgecolor=MISSED_COLOR, linewidth=2.2, linestyle=(0, (3, 2))
            )


def _draw_proposals(axis: Axes, example: Example, topk: int) -> None:
    for index in _top_proposals(example, topk):
        _outline(
            axis,
            example.proposal_boxes[index],
            edgecolor=PROPOSAL_COLOR,
            linewidth=1.0,
            alpha=float(0.35 + 0.65 * np.clip(example.objectness[index], 0, 1)),
        )


def _draw_detections(axis: Axes, example: Example) -> None:
    _draw_targets(axis, example)
    height, width = example.image.shape[:2]
    for box, score, name in zip(
        example.detection_boxes, example.detection_scores, example.detection_classes, strict=True
    ):
        _outline(axis, box, edgecolor=DETECTION_COLOR, linewidth=1.2)
        # Kept inside the image, where the neighbouring panel cannot be labelled by mistake.
        below_top = box[1] > 0.07 * height
        axis.text(
            float(np.clip(box[0], 0, 0.98 * width)),
            float(np.clip(box[1], 0, height)),
            f"{_plain(text.shorten(name, 14))} {score:.2f}",
            fontsize=6.5,
            color="black",
            va="bottom" if below_top else "top",
            ha="left" if box[0] < 0.7 * width else "center",
            clip_on=True,
            bbox={
                "facecolor": DETECTION_COLOR,
                "edgecolor": "none",
                "pad": 1.0,
                "alpha": 0.9,
            },
        )


def _box_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=FOUND_COLOR, linewidth=2, label="true object, found"),
        Line2D(
            [],
            [],
            color=MISSED_COLOR,
            linewidth=2.2,
            linestyle=(0, (3, 2)),
            label="true object, missed",
        ),
        Line2D([], [], color=DETECTION_COLOR, linewidth=2.5, label="detection"),
        Line2D([], [], color=PROPOSAL_COLOR, linewidth=1.5, label="proposal"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )


def _describe_found(example: Example) -> str:
    count = len(example.target_boxes)
    if not count:
        return "no true objects"
    num_found = int(found_objects(example.target_boxes, example.detection_boxes).sum())
    return f"{num_found} of {count} objects found"


def _png(figure: Figure) -> bytes:
    """The figure as a PNG: true colour where that is small, else 256 colours, else fewer dots."""
    figure.set_dpi(_DPI)
    figure.canvas.draw()
    drawn = pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    scale = 1.0
    while len(content := _encode(_with_palette(pixels))) > _MAX_BYTES and scale > _MIN_SCALE:
        # A photo's size grows with its number of dots. Drawing again would take longer.
        scale = max(_MIN_SCALE, scale * min(0.85, 0.9 * math.sqrt(_MAX_BYTES / len(content))))
        size = round(scale * drawn.width), round(scale * drawn.height)
        pixels = drawn.resize(size, Image.Resampling.LANCZOS)
    # Encoding is slow: try three channels only where they have a chance to fit.
    if 3 * len(content) <= _MAX_BYTES:
        true_color = _encode(pixels)
        if len(true_color) <= _MAX_BYTES:
            return true_color
    return content


def _encode(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def _with_palette(pixels: Image.Image) -> Image.Image:
    """256 colours, chosen from the picture and, in equal parts, from the heat map's scale.

    Photos fill most of a figure; left alone they would take most of the palette, and the colour
    bar would turn into a few steps.
    """
    small = pixels.resize(
        (256, max(1, 256 * pixels.height // pixels.width)), Image.Resampling.NEAREST
    )
    scale = colormaps[_HEAT_COLORS](np.linspace(0, 1, 256))[:, :3]
    seen = np.stack([_HEAT_OPACITY * scale + (1 - _HEAT_OPACITY) * grey for grey in (0.3, 0.6, 1)])
    swatch = np.repeat(np.round(255 * seen).astype(np.uint8), small.height // 3 + 1, axis=0)
    both = Image.fromarray(np.concatenate([np.asarray(small), swatch]))
    palette = both.quantize(256, Image.Quantize.MEDIANCUT)
    # Dithering would defeat both the compression and the flat colours of lines and letters.
    return pixels.quantize(palette=palette, dither=Image.Dither.NONE)
