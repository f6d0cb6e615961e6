# SPDX-License-Identifier: Apache-2.0
"""The scan of many checkpoints: what to scan, in which order, and every file of the output."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from d2defense.checkpoint import CheckpointError, CheckpointSource, Discovery
from d2defense.data import DatasetError, DatasetSource
from d2defense.detection import Calibration, ScanImages, ScanSettings
from d2defense.files import write_bytes, write_json
from d2defense.report.page import REPORT_FILE
from d2defense.report.results import (
    FIGURE_FILES,
    RESULT_FILE,
    SEARCH_FILES,
    TRIGGER_BANK_FILE,
    error_result,
)
from d2defense.report.scan_page import write_scan_report
from d2defense.report.table import SUMMARY_FILES, write_summary_csv, write_summary_json
from d2defense.text import shorten

from .executors import Finished, make_executor
from .found_trigger import write_found_trigger
from .inspector import make_inspector
from .lock import output_lock
from .options import RunOptions
from .resume import CheckpointFiles, finished_result, place_facts, scan_key, settings_key
from .task import ScanTask
from .twin import TWIN_FOLDER, write_twin

logger = logging.getLogger(__name__)

Result = dict[str, Any]


def scan(
    found: Discovery,
    dataset: DatasetSource,
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None = None,
    options: RunOptions | None = None,
    references: Sequence[CheckpointSource] = (),
) -> list[Result]:
    """Scan every checkpoint that was found and write the results to ``output_dir``.

    A checkpoint that cannot be scanned becomes an error result; the others go on. Each result is
    on disk as soon as it is known. Checkpoints that an earlier scan into the same folder finished,
    with the same images, settings and versions, are not scanned again.

    Args:
        found: what :func:`find_sources` finds.
        dataset: clean labelled images.
        output_dir: gets ``<name>/result.json`` with figures, ``summary.csv``, ``summary.json`` and
            ``report.html``, the last three when the scan is over.
        settings: of the scan.
        calibration: scores of clean detectors.
        device: of the models; their configs' choice if None.
        options: how to carry it out; the defaults if None.
        references: checkpoints of the same classes that are held to be clean, for a search.

    Returns:
        The results in the order of the sources, as they stand in the files.

    Raises:
        UsageError: another scan is writing to ``output_dir``, or it cannot be written to; Ray is
            asked for and cannot be used.
        CalibrationError: the calibration holds for other images.
    """
    options = options or RunOptions()
    output_dir = Path(output_dir)
    with output_lock(output_dir):
        for name in (*SUMMARY_FILES, REPORT_FILE):
            # A scan that is cut short must not leave the summary of another one.
            (output_dir / name).unlink(missing_ok=True)
        driver = _Driver(output_dir, settings, calibration, device, options, references)
        results = driver.scan(found.sources, dataset)
        write_summary_csv(output_dir / "summary.csv", results)
        write_summary_json(output_dir / "summary.json", results, found.left_out)
        write_scan_report(output_dir, {source.name for source in found.sources})
    return results


class _Driver:
    """The loop over the checkpoints of one scan; arguments as :func:`scan`."""

    def __init__(
        self,
        output_dir: Path,
        settings: ScanSettings,
        calibration: Calibration,
        device: str | None,
        options: RunOptions,
        references: Sequence[CheckpointSource],
    ) -> None:
        self._references = tuple(references)
        self._output_dir = output_dir
        self._settings = settings
        self._calibration = calibration
        self._device = device
        self._options = options
        self._results: dict[str, Result] = {}
        self._files: dict[str, CheckpointFiles] = {}
        self._keys: dict[str, str] = {}
        self._has_told = False

    def scan(self, sources: list[CheckpointSource], dataset: DatasetSource) -> list[Result]:
        """Scan the sources; the results in their order."""
        usable = [source for source in sources if source.error is None]
        for source in sources:
            if source.error is not None:
                self._fail(source, str(source.error))
        if usable:
            self._scan_usable(usable, dataset)
        return [self._results[source.name] for source in sources]

    def _scan_usable(self, sources: list[CheckpointSource], dataset: DatasetSource) -> None:
        executor = make_executor(self._options)
        try:
            images = ScanImages.load(dataset, self._settings)
        except DatasetError as error:
            for source in sources:
                self._fail(source, str(error))
            return
        self._calibration.check_images(images.name, images.fingerprint)
        settings = settings_key(
            images, self._settings, self._calibration, self._device, self._references
        )
        steps = len(images.records) * (1 + len(self._settings.triggers))
        silent = None if self._options.progress is None else not self._options.progress
        by_name = {source.name: source for source in sources}
        done: dict[str, int] = dict.fromkeys(by_name, 0)
        bar = tqdm(
            total=steps * len(sources), desc="scan", unit="image", disable=silent, smoothing=0.05
        )
        # What is logged meanwhile goes above the bar.
        with bar, logging_redirect_tqdm([logging.getLogger("d2defense")]):

            def advance(task: ScanTask, share: float) -> None:
                before = done[task.name]
                # A process that is started anew begins again; the bar only goes forward.
                done[task.name] = max(before, round(share * steps))
                bar.update(done[task.name] - before)

            def tasks() -> Iterator[ScanTask]:
                for source in sources:
                    bar.set_postfix_str(source.name)
                    task = self._prepare(source, images, settings)
                    if task is None:
                        bar.update(steps)
                    else:
                        yield task

            # Closed at once when interrupted: that ends what is under way.
            with closing(executor(tasks(), advance)) as finished_scans:
                for finished in finished_scans:
                    self._finish(by_name[finished.task.name], finished)
                    advance(finished.task, 1.0)

    def _prepare(
        self, source: CheckpointSource, images: ScanImages, settings: str
    ) -> ScanTask | None:
        """The scan of one checkpoint; None if its result is known already.

        ``settings`` is the :func:`settings_key` of this scan.
        """
        start = time.monotonic()
        try:
            folder = source.config.parent
            inspector = make_inspector(self._options, [source.weights, folder])
            files = CheckpointFiles.read(source, inspector)
        except OSError as error:
            self._fail(source, f"{source.path}: cannot be read: {error.strerror}")
            return None
        except CheckpointError as error:
            self._fail(source, str(error))
            return None
        key = scan_key(files, source, settings)
        self._files[source.name], self._keys[source.name] = files, key
        folder = self._output_dir / source.name
        known = None
        if not self._options.force:
            known = finished_result(folder, key, self._options.figures)
        if known is not None:
            logger.info("%s: scanned before", source.name)
            # The same bytes may lie elsewhere by now.
            self._write(source, known | {"name": source.name, "checkpoint": files.facts})
            return None
        return ScanTask(
            name=source.name,
            path=source.path,
            weights=source.weights,
            config=source.config,
            images=images,
            settings=self._settings,
            calibration=self._calibration,
            device=self._device,
            trusted_config=source.trusted_config,
            member=source.member,
            config_files=files.config_files,
            spent_seconds=time.monotonic() - start,
            time_limit=self._options.limits.seconds,
            figures=self._options.figures,
            references=self._references,
        )

    def _finish(self, source: CheckpointSource, finished: Finished) -> None:
        """Complete and write what the scan of one checkpoint yielded."""
        result, figures = finished.scanned.result, finished.scanned.figures
        twin = finished.scanned.twin
        files = self._files[source.name]
        if not files.are_unchanged(source):
            result, figures, twin = error_result(source.name, _changed(source)), {}, b""
        told = finished.task.images.warnings
        warnings = [*source.warnings, *told, *result["warnings"]]
        result = result | {
            "warnings": warnings,
            "name": source.name,
            "checkpoint": files.facts,
            "scan_key": self._keys[source.name],
            "environment": result["environment"] | {"isolation": finished.isolation or None},
        }
        self._tell_missing(finished.isolation)
        folder = self._output_dir / source.name
        for name in (*FIGURE_FILES, *SEARCH_FILES, TRIGGER_BANK_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / TWIN_FOLDER, ignore_errors=True)
        for name, content in figures.items():
            write_bytes(folder / name, content)
        write_found_trigger(folder, result, figures)
        write_twin(folder, source, source.name, twin)
        # Last: a folder with a result is complete.
        self._write(source, result)

    def _tell_missing(self, isolation: dict[str, Any]) -> None:
        """Say once what this system does not protect from."""
        if isolation.get("missing") and not self._has_told:
            self._has_told = True
            logger.warning(
                "protections that this system does not offer: %s",
                shorten("; ".join(isolation["missing"]), 500),
            )

    def _fail(self, source: CheckpointSource, reason: str) -> None:
        result = error_result(source.name, reason, str(source.weights or source.path))
        result["checkpoint"] |= place_facts(source)
        self._write(source, result | {"warnings": list(source.warnings)})

    def _write(self, source: CheckpointSource, result: Result) -> None:
        write_json(self._output_dir / source.name / RESULT_FILE, result)
        self._results[source.name] = result


def _changed(source: CheckpointSource) -> str:
    return f"{source.path}: the files changed while they were scanned"
