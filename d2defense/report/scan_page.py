# SPDX-License-Identifier: Apache-2.0
"""The page of a scan: verdicts, and all that is known of each checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2defense import text

from .page import REPORT_FILE, PagePicture, picture_of, write_page
from .results import (
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
# Left and right ends of a score bar's scale in its own units; macros.html.j2 draws it.
_BAR_START, _BAR_END = 6.0, 126.0


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
    context = page_context(results, [folders[id(result)] for result in results])
    return write_page(output_dir / REPORT_FILE, "scan.html.j2", **context)


def page_context(
    results: Sequence[Result], folders: Sequence[Path | None], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """What the template of a scan is given.

    Args:
        results: in the order in which they are shown.
        folders: of each, with its pictures; None for no pictures.
        notes: sentences for the head of the page.
    """
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
    obstacle = search["obstacle"]
    if not search["arms"]:
        return f"{search['level']}: could not be done: {obstacle or 'nothing was measured'}"
    worst = search["arms"][0]
    target = f" to {worst['target_class']}" if worst["target_class"] else ""
    against = ", ".join(search["references"]) or "what clean detectors show of their own"
    return (
        f"{search['level']}, held against {against}: largest "
        f"{worst['effect']}{target} ({worst['budget']} on {worst['placement']}), success "
        f"{text.number(worst['success'])}; score {text.number(search['score'])} "
        f"{text.interval(search['score_interval'])}, threshold {text.number(search['threshold'])}"
        + (f" of {search['null']}" if search.get("null") else "")
        + (f". Not done as asked: {obstacle}" if obstacle else "")
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


def _folder_pictures(folder: Path | None, result: Result) -> list[PagePicture]:
    pictures = []
    for name, caption in _CHECKPOINT_FIGURES.items():
        try:
            content = (folder / f"{name}.png").read_bytes() if folder else b""
        except OSError:
            continue
        picture = picture_of(content, caption, f"{name} of {result['name']}")
        if picture:
            pictures.append(picture)
    return pictures
