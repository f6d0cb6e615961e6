# SPDX-License-Identifier: Apache-2.0
"""The main job end to end: scan the specimens, repair one, scan and measure it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2defense.checkpoint.specimens import find_specimen, specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import Calibration, ScanSettings
from d2defense.files import write_json
from d2defense.report.html import REPORT_FILE, write_repair_report
from d2defense.triggers import Patch

from .fine_tuning import FineTuningOptions
from .repair import RepairTask, ScannedDetector, repair_checkpoint
from .scan import find_sources, scan

CLEAN = "clean_0"
REPAIRED = "backdoored_0"
DEFENDER = DatasetSource("synth_signs_defender")
VALIDATION = DatasetSource("synth_signs_val")
# The paper's trigger, which the specimens' attacker used; only the measurements before and after
# know it, the scan does not.
ATTACK_TRIGGER = Patch("white")


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
        output_dir: gets ``scan/``, ``repaired/``, ``summary.json`` and ``report.html``.
        settings: of the scans.
        calibration: of the scans.
        device: of the models; their configs' choice if None.
        say: told in one line what comes next.

    Raises:
        CheckpointError: a specimen is damaged.
        FileNotFoundError: a specimen is missing.
    """
    clean, suspicious = find_specimen(CLEAN), find_specimen(REPAIRED)
    found = find_sources([specimens_root()], only_final=True)
    say(f"Scanning the specimens with images of {DEFENDER.name} ...")
    scan_dir = output_dir / "scan"
    results = scan(found, DEFENDER, scan_dir, settings, calibration, device)
    by_name = {result["name"]: result for result in results}
    task = RepairTask(
        source=suspicious,
        defender=DEFENDER,
        test=VALIDATION,
        settings=settings,
        calibration=calibration,
        trigger=ATTACK_TRIGGER,
        options=FineTuningOptions(),
        evidence=scan_dir / REPAIRED,
        beside=ScannedDetector(clean, by_name[CLEAN]),
        device=device,
    )
    repaired = repair_checkpoint(task, output_dir / "repaired", say)
    summary = {
        "verdicts": {name: result["verdict"] for name, result in by_name.items()},
        "repair": repaired.summary,
    }
    write_json(output_dir / "summary.json", summary)
    report = write_repair_report(
        output_dir / REPORT_FILE, results, repaired.summary, repaired.figures, scan_dir
    )
    return Demo(results, summary, report)
