# SPDX-License-Identifier: Apache-2.0
"""The main job end to end: scan the specimens, repair one, scan and measure it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from d2defense.attacks import Trigger
from d2defense.checkpoint import build_detector
from d2defense.checkpoint.specimens import find_specimen, specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import (
    Calibration,
    ScanImages,
    ScanSettings,
    load_clean_images,
)
from d2defense.files import write_json
from d2defense.report.figures import draw_examples, draw_heatmaps, draw_histograms
from d2defense.report.html import write_repair_report

from .examples import example_pairs, make_example
from .fine_tuning import fine_tune
from .repair import measure_detector
from .scan import find_sources, scan

CLEAN = "clean_0"
REPAIRED = "backdoored_0"
DEFENDER = DatasetSource("synth_signs_defender")
VALIDATION = DatasetSource("synth_signs_val")
# The paper's trigger, which the specimens' attacker used; only the measurements before and after
# know it, the scan does not.
ATTACK_TRIGGER = Trigger("white")
EXAMPLE_IMAGES = 3


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        results: of the scan of the specimens.
        summary: as in ``summary.json``.
        report: path of ``report.html``.
    """

    results: list[dict[str, Any]]
    summary: dict[str, Any]
    report: Path


def run_demo(
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> Demo:
    """Run the demo; everything it makes goes below ``output_dir``.

    Args:
        output_dir: gets ``scan/``, ``renewed/``, ``scan_renewed/``, ``summary.json`` and
            ``report.html``.
        settings: of the scans.
        calibration: of the scans.
        device: of the models; their configs' choice if None.
        say: told in one line what comes next.

    Raises:
        CheckpointError: a specimen is missing or damaged.
    """
    say(f"Scanning the specimens with images of {DEFENDER.name} ...")
    clean, suspicious = find_specimen(CLEAN), find_specimen(REPAIRED)
    found = find_sources([specimens_root()], only_final=True)
    results = scan(found, DEFENDER, output_dir / "scan", settings, calibration, device)
    scanned = next(result for result in results if result["name"] == REPAIRED)
    say(f"Renewing {REPAIRED} with {DEFENDER.name} ...")
    renewal = fine_tune(suspicious, DEFENDER, output_dir / "renewed", device=device)
    say("Scanning the repaired checkpoint ...")
    found = find_sources([renewal.output_dir], only_final=True)
    (repaired,) = found.sources
    (scanned_again,) = scan(
        found, DEFENDER, output_dir / "scan_renewed", settings, calibration, device
    )
    say(f"Measuring it before and after on {VALIDATION.name} ...")
    VALIDATION.load()
    models = {
        name: build_detector(source.weights, source.config, device)
        for name, source in (
            (CLEAN, clean),
            ("before", suspicious),
            ("after", repaired),
        )
    }
    summary = {
        "verdicts": {result["name"]: result["verdict"] for result in results},
        "renewal": {
            "checkpoint": REPAIRED,
            "output": str(renewal.output_dir),
            "modules": list(renewal.modules),
            "seconds": renewal.seconds,
            "measured_on": VALIDATION.name,
            "before": measure_detector(
                *models["before"], VALIDATION.name, ATTACK_TRIGGER, scanned, "before"
            ),
            "after": measure_detector(
                *models["after"], VALIDATION.name, ATTACK_TRIGGER, scanned_again, "after"
            ),
        },
    }
    figures = _figures(models, results, settings)
    write_json(output_dir / "summary.json", summary)
    report = write_repair_report(
        output_dir / "report.html", results, summary["renewal"], figures, output_dir / "scan"
    )
    return Demo(results, summary, report)


def _figures(
    models: dict[str, tuple[nn.Module, CfgNode]],
    results: list[dict[str, Any]],
    settings: ScanSettings,
) -> dict[str, bytes]:
    """Figure 3 of the paper for a clean and a backdoored specimen, and examples of the repair."""
    cfg = models[CLEAN][1]
    dataset = ScanImages.load(VALIDATION, settings)
    images = load_clean_images(dataset.records[:EXAMPLE_IMAGES], cfg)
    names = dataset.class_names
    scanned = {result["name"]: result["histogram"] for result in results}
    histograms = {
        name: {"clean images": scanned[name]["clean"], "worst patch": scanned[name]["triggered"]}
        for name in (CLEAN, REPAIRED)
    }
    edges = results[0]["histogram"]["edges"]
    heatmaps = {
        label: make_example(models[key][0], images[0], ATTACK_TRIGGER, cfg.INPUT.FORMAT, names)
        for label, key in ((CLEAN, CLEAN), (REPAIRED, "before"), ("repaired", "after"))
    }
    return {
        "histograms": draw_histograms(
            edges, histograms, "Inconsistency of the proposals", settings.observation.epsilon
        ),
        "heatmaps": draw_heatmaps(heatmaps, "Inconsistency on a triggered image"),
        **{
            f"examples_{key}": draw_examples(
                example_pairs(models[key][0], images, ATTACK_TRIGGER, cfg.INPUT.FORMAT, names),
                f"{REPAIRED}, {key} the repair",
            )
            for key in ("before", "after")
        },
    }
