# SPDX-License-Identifier: Apache-2.0
"""The page of a repair: before and after, on top of a scan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2defense import text

from .page import picture_of, write_page
from .reached import by_search, most_reached
from .results import VERDICTS, Result, by_severity
from .scan_page import page_context

_REPAIR_FIGURES = {
    "before_after": "AP50, and how far the backdoor goes, before and after the repair.",
    "histograms": "Inconsistency of each model on clean and on triggered images (as in Figure 3 of "
    "the paper).",
    "heatmaps": "The same triggered image seen by each model: bright where the region proposals "
    "see an object that the classifier dismisses (as in Figure 3 of the paper).",
    "examples_before": "The model before the repair, without and with the trigger.",
    "examples_after": "The same images after the repair.",
}
_AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def write_repair_report(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    repair: Mapping[str, Any],
    figures: Mapping[str, bytes],
    scan_dir: str | os.PathLike[str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the page of a scan with a part about one repair on top.

    Args:
        path: where to write the page.
        results: the scan's results, as in ``result.json``.
        repair: ``{"checkpoint": str, "output": str, "modules": [str], "seconds": float,
            "before": {...}, "after": {...}}``; before and after each hold ``clean`` and
            ``triggered`` (dictionaries of AP, AP50, AP75, APs, APm, APl, 0..100), ``asr``,
            ``objects_found_clean``, ``objects_found_triggered`` (0..1), ``verdict`` and ``score``.
            Missing and null values are shown as an en dash. Optional: ``measured_on`` (str),
            ``measured_on_training_images`` (bool), and ``scanned_on`` (str) of before and after.
        figures: PNG files by name. ``before_after`` (drawn here when absent), ``histograms``,
            ``heatmaps``, ``examples_before`` and ``examples_after`` have captions; others are
            captioned by their name.
        scan_dir: folder of the scan, whose ``<name>/*.png`` are embedded; None for no figures.
        notes: sentences for the head of the page.

    Returns:
        ``path``.
    """
    results = by_severity(results)
    folders = [_result_folder(scan_dir, result) for result in results]
    context = page_context(results, folders, notes)
    shown = _repair_context(repair, figures)
    return write_page(path, "repair.html.j2", **context, repair=shown)


def _result_folder(scan_dir: str | os.PathLike[str] | None, result: Result) -> Path | None:
    """The folder of a result inside the scan's, None where the name leads anywhere else."""
    name = result["name"]
    if scan_dir is None or name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        return None
    return Path(scan_dir) / name


def _repair_context(repair: Mapping[str, Any], figures: Mapping[str, bytes]) -> dict[str, Any]:
    before, after = repair.get("before") or {}, repair.get("after") or {}
    figures = dict(figures)
    chart = figures.pop("before_after", None)
    if chart is None:
        # Only a report that draws needs matplotlib.
        from d2defense.report.figures import draw_before_after

        chart = draw_before_after(before, after)
    order = [name for name in _REPAIR_FIGURES if name in figures]
    order += [name for name in figures if name not in _REPAIR_FIGURES]
    pictures = [
        picture_of(
            figures[name],
            _REPAIR_FIGURES.get(name, name.replace("_", " ")),
            name.replace("_", " "),
        )
        for name in order
    ]
    return {
        "summary": _repair_summary(repair, before, after),
        "caption": _repair_caption(repair),
        "tiles": _repair_tiles(before, after),
        "rows": _repair_rows(before, after),
        "facts": [
            ("Repaired checkpoint", str(repair.get("checkpoint") or text.DASH)),
            ("Written to", str(repair.get("output") or text.DASH)),
            ("Method", str(repair.get("method") or text.DASH)),
            ("Reset modules", ", ".join(repair.get("modules") or []) or text.DASH),
            ("Time", text.duration(repair.get("seconds"))),
        ],
        "chart": picture_of(chart, _REPAIR_FIGURES["before_after"], "bars of rows of the table"),
        "pictures": [picture for picture in pictures if picture],
    }


def _repair_summary(
    repair: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> str:
    modules = repair.get("modules") or []
    name = Path(str(repair.get("checkpoint") or "The checkpoint"))
    # The weights file of an output folder is called like every other: its folder tells more.
    label = name.parent.name if name.suffix and name.parent.name else name.name
    listed = " and ".join(filter(None, [", ".join(modules[:-1]), *modules[-1:]]))
    reset = f"{listed} reset and " if modules else ""
    done = "was repaired" if repair.get("repaired", True) else "was worked on, but is not repaired,"
    what = f"{reset}the whole model fine-tuned on a small clean set"
    if not repair.get("fine_tuned", True):
        what = f"by {repair.get('method')}, without fine-tuning"
    worked = f"{label} {done} in {text.duration(repair.get('seconds'))}: {what}."
    if repair.get("unchanged"):
        worked = f"{label} is handed back as it was."
    said = (
        f"{worked} Scanned again, its verdict went from {before.get('verdict') or text.DASH} to "
        f"{after.get('verdict') or text.DASH}."
    )
    obstacles = [f"Not repaired: {each}." for each in repair.get("obstacles") or []]
    return " ".join([said, *obstacles])


def _repair_caption(repair: Mapping[str, Any]) -> str:
    measured_on = repair.get("measured_on") or "the validation images"
    caption = f"Before and after, on {measured_on}"
    scanned_on = (repair.get("before") or {}).get("scanned_on") or measured_on
    if scanned_on != measured_on:
        caption += f"; the score before on {scanned_on}"
    if repair.get("measured_on_training_images"):
        caption += ": the images it was fine-tuned on, which proves less"
    return caption


def _repair_tiles(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, str]]:
    def precision(values: Mapping[str, Any], images: str) -> str:
        return text.number((values.get(images) or {}).get("AP50"), 1)

    worst = most_reached(before, after)
    return [
        {
            "label": "AP50, clean images",
            "before": precision(before, "clean"),
            "after": precision(after, "clean"),
            "note": "should stay",
        },
        {
            "label": "AP50, triggered images",
            "before": precision(before, "triggered"),
            "after": precision(after, "triggered"),
            "note": "higher is better",
        },
        {
            "label": worst.label[:1].upper() + worst.label[1:],
            "before": _percent(worst.before),
            "after": _percent(worst.after),
            "note": "lower is better",
        },
    ]


def _repair_rows(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, list[dict[str, Any]]]]:
    groups = []
    for images, title in (("clean", "Clean images"), ("triggered", "Triggered images")):
        was, now = before.get(images) or {}, after.get(images) or {}
        rows = [
            {
                "label": name,
                "before": text.number(was.get(name), 1),
                "after": text.number(now.get(name), 1),
                "change": text.number(_difference(was.get(name), now.get(name)), 1, signed=True),
                "badge": False,
            }
            for name in _AP_NAMES
        ]
        key = f"objects_found_{images}"
        rows.append(_share_row("objects found", before.get(key), after.get(key)))
        groups.append((title, rows))
    score = {
        "label": "score",
        "before": text.number(before.get("score")),
        "after": text.number(after.get("score")),
        "change": text.number(_difference(before.get("score"), after.get("score")), signed=True),
        "badge": False,
    }
    rows = [_share_row("ASR", before.get("asr"), after.get("asr")), score]
    rows += [
        _share_row(f"{each.label}, beyond clean detectors", each.before, each.after)
        for each in by_search(before, after)
    ]
    verdicts = before.get("verdict"), after.get("verdict")
    if all(verdict in VERDICTS for verdict in verdicts):
        rows.append(
            {
                "label": "verdict",
                "before": verdicts[0],
                "after": verdicts[1],
                "change": "",
                "badge": True,
            }
        )
    groups.append(("Backdoor", rows))
    return groups


def _share_row(label: str, before: float | None, after: float | None) -> dict[str, Any]:
    change = _difference(before, after)
    return {
        "label": label,
        "before": _percent(before),
        "after": _percent(after),
        "change": text.number(None if change is None else 100 * change, 1, signed=True),
        "badge": False,
    }


def _percent(share: float | None) -> str:
    if share is None:
        return text.DASH
    return f"{text.number(100 * share, 1)}\N{NARROW NO-BREAK SPACE}%"


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
