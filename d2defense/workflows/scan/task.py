# SPDX-License-Identifier: Apache-2.0
"""What a process that scans is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from d2defense.checkpoint import CheckpointSource
from d2defense.detection import Calibration, ScanImages, ScanSettings


@dataclass(frozen=True)
class ScanTask:
    """One checkpoint to scan, with everything that its scan depends on.

    Attributes:
        name: of the checkpoint, unique within the scan.
        path: what messages about it begin with.
        weights: its weights file.
        config: its configuration file.
        images: clean images.
        settings: of the scan.
        calibration: scores of clean detectors.
        device: of the model; the config's choice if None.
        trusted_config: whether the user vouches for the configuration file.
        member: which of the file's sets of weights; the one that Detectron2 loads if None.
        config_files: files and folders that it builds upon, if it does.
        spent_seconds: of the time limit, before the scan began.
        time_limit: of the whole scan, in seconds; None for none.
        figures: whether to draw.
        threads: of PyTorch; as they are if None.
        references: checkpoints of the same classes that are held to be clean.
    """

    name: str
    path: Path
    weights: Path
    config: Path
    images: ScanImages
    settings: ScanSettings
    calibration: Calibration
    device: str | None = None
    trusted_config: bool = False
    member: str | None = None
    config_files: tuple[Path, ...] = ()
    spent_seconds: float = 0.0
    time_limit: float | None = None
    figures: bool = True
    threads: int | None = None
    references: tuple[CheckpointSource, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Every file and folder that the scan reads."""
        records = (*self.images.records, *self.images.further)
        images = (Path(record["file_name"]) for record in records)
        references = (part for each in self.references for part in (each.weights, each.config))
        return [self.weights, self.config, *self.config_files, *references, *images]
