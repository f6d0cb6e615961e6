# SPDX-License-Identifier: Apache-2.0
"""The scan of many checkpoints: results, summary, figures and report in one folder."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn
from tqdm import tqdm

from d2defense.checkpoint import (
    CheckpointError,
    CheckpointSource,
    build_detector,
    file_sha256,
    find_checkpoints,
)
from d2defense.data import DatasetError, DatasetSource
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.detection import (
    Calibration,
    CleanImage,
    Inspection,
    ScanSettings,
    inspect_detector,
    load_clean_images,
    sample_records,
)
from d2defense.environment import library_versions
from d2defense.files import write_bytes, write_json
from d2defense.report.figures import draw_examples, draw_histograms
from d2defense.report.html import write_scan_report
from d2defense.report.results import RESULT_FILE, SCHEMA_VERSION, error_result
from d2defense.report.table import write_summary_csv, write_summary_json

from .examples import example_pairs

EXAMPLE_IMAGES = 3


@dataclass(frozen=True)
class ScanImages:
    """The clean images of a scan, the same for all of its checkpoints.

    Attributes:
        name: of the dataset.
        records: Detectron2's standard dataset dicts of the images drawn.
        class_names: of the dataset.
        fingerprint: SHA-256 over the records' pixels and annotations.
    """

    name: str
    records: list[dict[str, Any]]
    class_names: list[str]
    fingerprint: str

    @classmethod
    def load(cls, dataset: DatasetSource, settings: ScanSettings) -> ScanImages:
        """Draw the images that ``settings`` asks for.

        Raises:
            DatasetError: the dataset is unknown, incomplete or shows no object.
        """
        records = sample_records(dataset.load(), settings.max_images, settings.seed)
        if not records:
            raise DatasetError(f"{dataset.name}: no image shows an object")
        names = list(MetadataCatalog.get(dataset.name).get("thing_classes", []))
        return cls(dataset.name, records, names, dataset_fingerprint(records))


def scan(
    paths: Iterable[str | Path],
    dataset: DatasetSource,
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Scan every checkpoint below ``paths`` and write the results to ``output_dir``.

    A checkpoint that cannot be scanned becomes an error result; the others go on. Each result is
    on disk before the next scan starts.

    Args:
        paths: checkpoints or folders of them (:func:`find_checkpoints`).
        dataset: clean labelled images.
        output_dir: gets ``<name>/result.json`` with figures, ``summary.csv``, ``summary.json`` and
            ``report.html``.
        settings: of the scan.
        calibration: scores of clean detectors.
        device: of the models; their configs' choice if None.

    Returns:
        The results in the order of ``paths``, as they stand in the files.
    """
    sources = find_checkpoints(paths)
    images: ScanImages | DatasetError
    try:
        images = ScanImages.load(dataset, settings)
    except DatasetError as error:
        images = error
    results = []
    steps = 1 + len(settings.triggers)
    with tqdm(total=steps * len(sources), desc="scan", unit="pass", disable=None) as bar:
        for number, source in enumerate(sources, 1):
            bar.set_postfix_str(source.name)
            result = _scan_source(source, images, output_dir, settings, calibration, device, bar)
            write_json(output_dir / source.name / RESULT_FILE, result)
            results.append(result)
            bar.n = steps * number
            bar.refresh()
    write_summary_csv(output_dir / "summary.csv", results)
    write_summary_json(output_dir / "summary.json", results)
    write_scan_report(output_dir, {source.name for source in sources})
    return results


def _scan_source(
    source: CheckpointSource,
    images: ScanImages | DatasetError,
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None,
    bar: tqdm,
) -> dict[str, Any]:
    try:
        if source.error:
            raise source.error
        if isinstance(images, DatasetError):
            raise images
        return scan_checkpoint(
            source, images, output_dir / source.name, settings, calibration, device, bar
        )
    except (CheckpointError, DatasetError) as error:
        reason = str(error)
    except Exception as error:  # an attacker's model can fail in any way; the scan must go on
        reason = f"{source.path}: the scan failed: {type(error).__name__}: {error}"
    return error_result(source.name, reason, str(source.weights or source.path))


def scan_checkpoint(
    source: CheckpointSource,
    dataset: ScanImages,
    output_dir: Path,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None = None,
    bar: tqdm | None = None,
) -> dict[str, Any]:
    """Scan one checkpoint; figures go to ``output_dir``.

    Returns:
        The result as docs/result-format.md describes it.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    start = time.perf_counter()
    model, cfg = build_detector(source.weights, source.config, device)
    images = load_clean_images(dataset.records, cfg)
    names = dataset.class_names
    inspection = inspect_detector(
        model,
        images,
        settings,
        calibration,
        cfg.INPUT.FORMAT,
        match_classes=len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        progress=bar.update if bar is not None else None,
    )
    _draw(output_dir, source.name, model, cfg, images, names, inspection, settings)
    seconds = time.perf_counter() - start
    passes = len(images) * (1 + len(settings.triggers))
    verdict = inspection.verdict
    return {
        "schema_version": SCHEMA_VERSION,
        "name": source.name,
        "checkpoint": {
            "path": str(source.weights),
            "config": str(source.config),
            "format": source.weights.suffix.lstrip("."),
            "sha256": file_sha256(source.weights),
            "size_bytes": source.weights.stat().st_size,
        },
        "architecture": _architecture(model, cfg),
        "dataset": {
            "name": dataset.name,
            "num_images": len(images),
            "num_objects": sum(len(image.boxes) for image in images),
            "fingerprint": dataset.fingerprint,
        },
        "settings": settings.as_dict(),
        "verdict": verdict.label,
        "score": verdict.score,
        "score_interval": list(verdict.interval),
        "threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "calibration": calibration.describe(dataset.name),
        "worst_trigger": inspection.worst_trigger,
        "dominant_modules": inspection.dominant_modules,
        **inspection.fields,
        "timing": {"seconds": seconds, "images_per_second": passes / seconds},
        "environment": library_versions() | {"device": str(model.device)},
        "error": None,
    }


def _draw(
    output_dir: Path,
    name: str,
    model: nn.Module,
    cfg: CfgNode,
    images: list[CleanImage],
    names: list[str],
    inspection: Inspection,
    settings: ScanSettings,
) -> None:
    trigger = next(t for t in settings.triggers if t.name == inspection.worst_trigger)
    pairs = example_pairs(model, images[:EXAMPLE_IMAGES], trigger, cfg.INPUT.FORMAT, names)
    write_bytes(output_dir / "examples.png", draw_examples(pairs, f"{name}: {trigger.name} patch"))
    histogram = inspection.fields["histogram"]
    write_bytes(
        output_dir / "histogram.png",
        draw_histograms(
            histogram["edges"],
            {"clean images": histogram["clean"], f"{trigger.name} patch": histogram["triggered"]},
            f"{name}: inconsistency of the proposals",
            settings.observation.epsilon,
        ),
    )


def _architecture(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    return {
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "proposal_generator": cfg.MODEL.PROPOSAL_GENERATOR.NAME,
        "roi_heads": cfg.MODEL.ROI_HEADS.NAME,
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
