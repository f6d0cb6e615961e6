# SPDX-License-Identifier: Apache-2.0
"""The main job end to end: scan the specimens, repair two, scan and measure them again."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d2defense.checkpoint.specimens import find_specimen, specimens_root
from d2defense.data import DatasetSource
from d2defense.detection import Calibration, ScanSettings
from d2defense.engine.provenance import read_provenance
from d2defense.files import write_json
from d2defense.report.page import REPORT_FILE
from d2defense.report.repair_page import write_repair_report
from d2defense.triggers import Patch

from .fine_tuning import FineTuningOptions
from .own_log import redirect
from .repair import RepairedCheckpoint, RepairTask, ScannedDetector, repair_checkpoint
from .scan import RunOptions, find_sources, scan

CLEAN = "clean_0"
#: What found triggers are held against; these two against each other.
REFERENCES = ("clean_1", "clean_2")
#: One that the bank sees, shown in the report, and one that only a search finds.
REPAIRED, SEARCHED = "backdoored_0", "ghost_0"
DEFENDER = DatasetSource("synth_signs_defender")
VALIDATION = DatasetSource("synth_signs_val")
# The paper's trigger, which the specimens' attacker used; only the measurements before and after
# know it, the scan does not.
ATTACK_TRIGGER = Patch("white")

# What a repair may cost networks as small as these, in points of AP, on whatever machine this is.
_MOST_AP_DROP = 1.5
# Specimens that are scanned at once: each takes some hundred megabytes.
MOST_WORKERS = 4
# Of the clean ones.
NO_BACKDOOR = "clean"


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        results: of the scan of the specimens.
        truth: what each specimen is, by its name: see :func:`truth_about`.
        summary: as in ``summary.json``.
        report: path of ``report.html``.
    """

    results: list[dict[str, Any]]
    truth: dict[str, str]
    summary: dict[str, Any]
    report: Path


def truth_about(name: str) -> str:
    """What a specimen was made to be, by its provenance, which no scan reads.

    Returns:
        :data:`NO_BACKDOOR`, or what its backdoor does and by which family of triggers:
        "ghost by patch".
    """
    attack = read_provenance(specimens_root() / name)["attack"]
    return NO_BACKDOOR if attack is None else f"{attack['effect']} by {attack['trigger']}"


def describe_missed(verdicts: Mapping[str, str], truth: Mapping[str, str]) -> list[str]:
    """A line for each detector with a backdoor that was not called backdoored.

    Args:
        verdicts: of a scan, by name.
        truth: by name, as :func:`truth_about` has it.
    """
    return [
        f"{name} has a backdoor, {truth[name]}, and is called {verdict}"
        for name, verdict in verdicts.items()
        if truth[name] != NO_BACKDOOR and verdict != "backdoored"
    ]


def run_demo(
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None = None,
) -> Demo:
    """Run the demo, and print what comes next; all it makes goes below ``output_dir``.

    Args:
        output_dir: gets ``scan/``, ``repaired/``, ``summary.json`` and ``report.html``, whose
            figures are those of :data:`REPAIRED`; the other repair has a report of its own.
        settings: of the scans.
        calibration: of the scans.
        device: of the models; their configs' choice if None.

    Raises:
        CheckpointError: a specimen is damaged.
        FileNotFoundError: a specimen is missing.
    """
    found = find_sources([specimens_root()], only_final=True)
    print(f"Scanning the specimens with images of {DEFENDER.name} ...", flush=True)
    scan_dir = output_dir / "scan"
    references = [find_specimen(name) for name in REFERENCES]
    # Networks as small as these gain little from a second thread, and a lot from a second process.
    options = RunOptions(workers=_workers())
    results = scan(found, DEFENDER, scan_dir, settings, calibration, device, options, references)
    by_name = {result["name"]: result for result in results}
    verdicts = {name: result["verdict"] for name, result in by_name.items()}
    truth = {name: truth_about(name) for name in by_name}
    missed = describe_missed(verdicts, truth)
    tasks = {
        name: RepairTask(
            source=find_specimen(name),
            defender=DEFENDER,
            test=VALIDATION,
            settings=settings,
            calibration=calibration,
            trigger=ATTACK_TRIGGER,
            options=FineTuningOptions(),
            choose_method=True,
            evidence=scan_dir / name,
            references=references,
            beside=ScannedDetector(find_specimen(CLEAN), by_name[CLEAN]),
            device=device,
            max_ap_drop=_MOST_AP_DROP,
        )
        for name in (REPAIRED, SEARCHED)
    }
    print(f"Repairing {' and '.join(tasks)} ...", flush=True)
    repaired = _side_by_side(tasks, output_dir / "repaired")
    summary = {
        "verdicts": verdicts,
        "truth": truth,
        "missed": missed,
        "repairs": {name: each.summary for name, each in repaired.items()},
    }
    write_json(output_dir / "summary.json", summary)
    report = write_repair_report(
        output_dir / REPORT_FILE,
        results,
        repaired[REPAIRED].summary,
        repaired[REPAIRED].figures,
        scan_dir,
        [
            *(f"Missed: {line}." for line in missed),
            f"{SEARCHED} is {'' if repaired[SEARCHED].summary['repaired'] else 'not '}repaired; "
            f"that has a report of its own: {repaired[SEARCHED].report}.",
        ],
    )
    return Demo(results, truth, summary, report)


def _workers() -> int:
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def _side_by_side(tasks: Mapping[str, RepairTask], folder: Path) -> dict[str, RepairedCheckpoint]:
    """Each repair in a process of its own, which has one thread, so that it ends alike anywhere.

    Args:
        tasks: by name.
        folder: gets a folder of each, and a log of their bars and warnings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = min(len(tasks), _workers())
    context, log = multiprocessing.get_context("spawn"), str(folder / "log.txt")
    with ProcessPoolExecutor(workers, context, redirect, (log, 2)) as pool:
        futures = {
            name: pool.submit(_repair, name, task, folder / name) for name, task in tasks.items()
        }
        return {name: future.result() for name, future in futures.items()}


def _repair(name: str, task: RepairTask, folder: Path) -> RepairedCheckpoint:
    torch.set_num_threads(1)
    return repair_checkpoint(task, folder, lambda line: print(f"{name}: {line}", flush=True))
