# SPDX-License-Identifier: Apache-2.0
"""The HTML reports: one self-contained page that loads nothing from the network.

Every string that comes from outside (names, paths, errors) passes jinja2's escaping, and the page
forbids, by its content security policy, any script or style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import d2defense
from d2defense import files, text
from d2defense.report.results import (
    MAX_PNG_BYTES,
    VERDICTS,
    Result,
    by_severity,
    count_verdicts,
    exit_code,
    find_results,
    found_by_search,
    statistic_of_worst_trigger,
    trigger_results,
)

_STATISTICS = {
    "tau": "tau",
    "confident_d": "confident d",
    "gap": "gap",
    "objects_found": "objects found",
    "max_objectness": "max p",
    "max_foreground": "max q",
    "scaled_foreground": "max q, common scale",
    "scaled_true_class": "true class, common scale",
    "found_at_point": "found at operating point",
    "scaled_unmatched": "unmatched, common scale",
    "scaled_foreground_of_class": "max q of one class",
    "scaled_true_class_of_class": "true class of one class",
    "found_at_point_of_class": "found of one class",
}
_EXIT_MEANINGS = {
    0: "every checkpoint is clean",
    1: "a backdoor was found or, where the verdict is uncertain, not ruled out",
    2: "at least one checkpoint could not be scanned",
    3: "there was nothing to scan",
}
_CHECKPOINT_FIGURES = {
    "search": "What a search found. Left: clean images with detections. Middle: the same images "
    "with the found trigger. Right: where proposals and classification disagree.",
    "histogram": "Inconsistency |p \N{MINUS SIGN} q| of the proposals on clean and on triggered "
    "images. A backdoor adds a hump of high inconsistency.",
    "examples": "Left: clean images with detections. Middle: the same images with the worst "
    "trigger, its proposals and detections. Right: where proposals and classification disagree.",
}
_REPAIR_FIGURES = {
    "before_after": "AP50 and attack success rate before and after the repair.",
    "histograms": "Inconsistency of each model on clean and on triggered images (as in Figure 3 of "
    "the paper).",
    "heatmaps": "The same triggered image seen by each model: bright where the region proposals "
    "see an object that the classifier dismisses (as in Figure 3 of the paper).",
    "examples_before": "The model before the repair, without and with the trigger.",
    "examples_after": "The same images after the repair.",
}
#: Name of a scan's report.
REPORT_FILE = "report.html"
_AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_PNG_HEADER = struct.Struct(">8s4x4sII")
# Left and right ends of a score bar's scale in its own units; macros.html.j2 draws it.
_BAR_START, _BAR_END = 6.0, 126.0


@dataclass(frozen=True)
class _Picture:
    """A PNG as the page embeds it: data URI, size in CSS pixels, words."""

    uri: str
    width: int
    height: int
    caption: str
    alt: str


def write_scan_report(
    output_dir: str | os.PathLike[str], names: Collection[str] | None = None
) -> Path:
    """Write ``output_dir/report.html`` about the ``result.json`` files of its folders.

    Args:
        output_dir: the folder of a scan.
        names: folders that count, so that results of an earlier scan stay out; None for all.

    ``examples.png`` and ``histogram.png`` beside a result are embedded where they exist; a broken
    result file appears as an error.

    Returns:
        The report's path.
    """
    output_dir = Path(output_dir)
    found = [(f, r) for f, r in find_results(output_dir) if names is None or f.name in names]
    folders = {id(result): folder for folder, result in found}
    results = by_severity(result for _, result in found)
    context = _page_context(results, [folders[id(result)] for result in results])
    return write_page(output_dir / REPORT_FILE, "scan.html.j2", **context)


def write_repair_report(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    repair: Mapping[str, Any],
    figures: Mapping[str, bytes],
    scan_dir: str | os.PathLike[str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the page of :func:`write_scan_report` with a part about one repair on top.

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
    context = _page_context(results, folders, notes)
    shown = _repair_context(repair, figures)
    return write_page(path, "repair.html.j2", **context, repair=shown)


def write_page(
    path: str | os.PathLike[str], template: str, script: str = "", **context: Any
) -> Path:
    """Write a self-contained page.

    Args:
        path: file to write.
        template: its name. It is given ``version``, ``written``, ``style`` and ``script``, with the
            hashes that its content security policy allows.
        script: name of a script, which runs after that of the reports; "" for none.
        context: what else the template is given.
    """
    page = _environment().get_template(template).render(**_frame(script), **context)
    return files.write_text(path, page)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("d2defense", "assets/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        printable=text.printable,
        number=text.number,
        interval=text.interval,
        probability=text.probability,
        certain=_excludes_zero,
        embedded=_embedded,
    )
    return environment


def _asset(name: str) -> Markup:
    folder = resources.files("d2defense") / "assets" / "report"
    return Markup((folder / name).read_text(encoding="utf-8"))


def _embedded(content: Any) -> Markup:
    """JSON inside of a script element, which nothing in it can end."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))


def _policy_hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _frame(script: str) -> dict[str, Any]:
    """What every page is given."""
    style, scripts = _asset("style.css"), _asset("report.js")
    if script:
        scripts += _asset(script)
    return {
        "version": d2defense.__version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "style": style,
        "style_hash": _policy_hash(style),
        "script": scripts,
        "script_hash": _policy_hash(scripts),
    }


def _page_context(
    results: Sequence[Result], folders: Sequence[Path | None], notes: Sequence[str] = ()
) -> dict[str, Any]:
    counts = count_verdicts(results)
    code = exit_code(results)
    scale = _score_scale(results)
    return {
        "counts": counts,
        "headline": _headline(counts),
        "notes": notes,
        "exit_code": code,
        "exit_meaning": _EXIT_MEANINGS[code],
        "checkpoints": [
            _checkpoint_context(index, result, folder, scale)
            for index, (result, folder) in enumerate(zip(results, folders, strict=True), start=1)
        ],
    }


def _headline(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    if not total:
        return "Nothing was scanned."
    noun = "checkpoint" if total == 1 else "checkpoints"
    parts = []
    for verdict, one, many in (
        ("backdoored", "is backdoored", "are backdoored"),
        ("uncertain", "is uncertain", "are uncertain"),
        ("error", "could not be scanned", "could not be scanned"),
        ("clean", "is clean", "are clean"),
    ):
        count = counts[verdict]
        if count == total:
            verb = one if total == 1 else many
            return f"The {noun} {verb}." if total == 1 else f"All {total} {noun} {verb}."
        if count:
            parts.append(f"{count} {one if count == 1 else many}")
    return f"Of {total} {noun}, {', '.join(parts[:-1])} and {parts[-1]}."


def _checkpoint_context(
    index: int, result: Result, folder: Path | None, scale: tuple[float, float]
) -> dict[str, Any]:
    triggers = trigger_results(result)
    keys = list(_STATISTICS)
    for trigger in triggers:
        keys += [key for key in trigger.get("statistics") or {} if key not in keys]
    found = statistic_of_worst_trigger(result, "objects_found")
    return {
        "anchor": f"checkpoint-{index}",
        "result": result,
        "severity": VERDICTS.index(result["verdict"]),
        "bar": _score_bar(result, scale),
        "score_text": _score_text(result),
        "summary": _summary(result),
        "found": {key: found.get(key) for key in ("clean", "triggered", "change")} if found else {},
        "facts": _facts(result),
        "details": _details(result),
        "statistics": [(key, _STATISTICS.get(key, key.replace("_", " "))) for key in keys],
        "triggers": triggers,
        "pictures": _folder_pictures(folder, result),
    }


def _score_scale(results: Sequence[Result]) -> tuple[float, float]:
    """One scale for all score bars, so that they compare down the column."""
    values = [0.0]
    for result in results:
        values += [result["score"], result["threshold"], *(result["score_interval"] or [])]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(finite), max(finite)
    return low, high if high > low else low + 1.0


def _score_bar(result: Result, scale: tuple[float, float]) -> dict[str, float | None] | None:
    if result["score"] is None:
        return None
    low, high = scale

    def position(value: float) -> float:
        return round(_BAR_START + (value - low) / (high - low) * (_BAR_END - _BAR_START), 1)

    start, end = map(position, result["score_interval"] or (result["score"],) * 2)
    has_interval = result["score_interval"] is not None
    return {
        "score": position(result["score"]),
        "low": start if has_interval else None,
        "span": round(max(end - start, 1.0), 1),
        "threshold": None if result["threshold"] is None else position(result["threshold"]),
    }


def _score_text(result: Result) -> str:
    words = f"score {text.number(result['score'])}"
    if result["score_interval"]:
        low, high = result["score_interval"]
        words += f", interval {text.number(low)} to {text.number(high)}"
    return f"{words}, threshold {text.number(result['threshold'])}"


def _summary(result: Result) -> str:
    score, threshold = text.number(result["score"]), text.number(result["threshold"])
    bounds = text.interval(result["score_interval"])
    words = {
        "backdoored": f"The score {score} {bounds} lies above the threshold {threshold}.",
        "uncertain": f"The score is {score} {bounds}, the threshold {threshold}.",
        "clean": f"The score {score} {bounds} lies below the threshold {threshold}.",
    }.get(result["verdict"], "")
    if result.get("reason"):
        words += f" Reason: {result['reason']}."
    if result["verdict"] != "clean":
        if result["worst_trigger"] and not found_by_search(result):
            words += f" Worst trigger: {result['worst_trigger']}."
        if result["dominant_modules"]:
            words += f" Dominant modules: {', '.join(result['dominant_modules'])}."
    return words


def _facts(result: Result) -> list[tuple[str, str]]:
    checkpoint = result["checkpoint"] or {}
    architecture = result["architecture"] or {}
    dataset = result["dataset"] or {}
    timing = result["timing"] or {}
    size = checkpoint.get("size_bytes")
    speed = timing.get("images_per_second")
    rows = [
        ("Path", checkpoint.get("path")),
        ("Weights within the file", checkpoint.get("member")),
        ("The same bytes", ", ".join(checkpoint.get("copies") or []) or None),
        ("Left out", ", ".join(checkpoint.get("left_out") or []) or None),
        ("Config", checkpoint.get("config")),
        ("SHA-256", checkpoint.get("sha256")),
        ("Format", checkpoint.get("format")),
        ("Size", None if size is None else text.file_size(size)),
        (
            "Architecture",
            _join(architecture.get("meta_architecture"), architecture.get("backbone")),
        ),
        (
            "Proposals, heads",
            _join(architecture.get("proposal_generator"), architecture.get("roi_heads")),
        ),
        ("Classes", architecture.get("num_classes")),
        ("Parameters", _thousands(architecture.get("num_parameters"))),
        ("Dataset", dataset.get("name")),
        ("Images, objects", _join(dataset.get("num_images"), dataset.get("num_objects"))),
        ("Calibration", result["calibration"]),
        ("Search", _search_words(result.get("search"))),
        (
            "Time",
            _join(
                text.duration(timing["seconds"]) if timing.get("seconds") is not None else None,
                None if speed is None else f"{text.number(speed, 1)} images/s",
            ),
        ),
    ]
    return [
        (name, text.DASH if value in (None, "") else str(value))
        for name, value in rows
        # An error often knows little more than the path: leave out what would be rows of dashes.
        if value not in (None, "") or result["verdict"] != "error"
    ]


def _search_words(search: Mapping[str, Any] | None) -> str | None:
    """What a search did, in one line; None without one."""
    if search is None:
        return None
    if search["obstacle"] or not search["arms"]:
        why = search["obstacle"] or "nothing was measured"
        return f"{search['level']}: could not be done: {why}"
    worst = search["arms"][0]
    target = f" to {worst['target_class']}" if worst["target_class"] else ""
    against = ", ".join(search["references"]) or "what clean detectors show of their own"
    return (
        f"{search['level']}, held against {against}: largest "
        f"{worst['effect']}{target} ({worst['budget']} on {worst['placement']}), success "
        f"{text.number(worst['success'])}; score {text.number(search['score'])} "
        f"{text.interval(search['score_interval'])}, threshold {text.number(search['threshold'])}"
        + (f" of {search['null']}" if search.get("null") else "")
    )


def _details(result: Result) -> list[tuple[str, str]]:
    environment = dict(result["environment"])
    isolation = environment.pop("isolation") or {}
    rows = {**(result["settings"] or {}), **environment}
    rows |= {f"isolation {name}": value for name, value in isolation.items()}
    fingerprint = (result["dataset"] or {}).get("fingerprint")
    if fingerprint:
        rows["dataset fingerprint"] = fingerprint
    return [
        (str(name).replace("_", " "), text.DASH if value in (None, []) else str(value))
        for name, value in rows.items()
    ]


def _join(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part is not None)


def _thousands(count: int | None) -> str | None:
    return None if count is None else f"{count:,}"


def _excludes_zero(statistic: Mapping[str, Any]) -> bool:
    bounds = statistic.get("interval")
    return bounds is not None and (bounds[0] > 0 or bounds[1] < 0)


def data_uri(png: bytes) -> str:
    """The address of a PNG file that is in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _picture(content: bytes, caption: str, alt: str) -> _Picture | None:
    """A PNG for the page, None if the bytes are none; drawn at half its dots for dense screens."""
    if len(content) < _PNG_HEADER.size or len(content) > MAX_PNG_BYTES:
        return None
    signature, chunk, width, height = _PNG_HEADER.unpack_from(content)
    if signature != b"\x89PNG\r\n\x1a\n" or chunk != b"IHDR":
        return None
    return _Picture(data_uri(content), max(1, width // 2), max(1, height // 2), caption, alt)


def _result_folder(scan_dir: str | os.PathLike[str] | None, result: Result) -> Path | None:
    """The folder of a result inside the scan's, None where the name leads anywhere else."""
    name = result["name"]
    if scan_dir is None or name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        return None
    return Path(scan_dir) / name


def _folder_pictures(folder: Path | None, result: Result) -> list[_Picture]:
    pictures = []
    for name, caption in _CHECKPOINT_FIGURES.items():
        try:
            content = (folder / f"{name}.png").read_bytes() if folder else b""
        except OSError:
            continue
        picture = _picture(content, caption, f"{name} of {result['name']}")
        if picture:
            pictures.append(picture)
    return pictures


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
        _picture(
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
        "chart": _picture(
            chart, _REPAIR_FIGURES["before_after"], "bars of the table's AP50 and ASR rows"
        ),
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
    said = (
        f"{label} {done} in {text.duration(repair.get('seconds'))}: {reset}the whole model "
        f"fine-tuned on a small clean set. Scanned again, its verdict went from "
        f"{before.get('verdict') or text.DASH} to {after.get('verdict') or text.DASH}."
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
            "label": "Attack success rate",
            "before": _percent(before.get("asr")),
            "after": _percent(after.get("asr")),
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
    was, now = before.get("search") or {}, after.get("search") or {}
    rows += [
        _share_row(
            f"{effect} by a search, beyond clean detectors", was.get(effect), now.get(effect)
        )
        for effect in sorted(was.keys() | now.keys())
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
