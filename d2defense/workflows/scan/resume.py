# SPDX-License-Identifier: Apache-2.0
"""Recognising what was scanned before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2defense.checkpoint import CheckpointError, CheckpointSource, file_sha256
from d2defense.checkpoint.config import read_config_file
from d2defense.checkpoint.inspection import Inspector, Question
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.detection import Calibration, ScanImages, ScanSettings
from d2defense.detection.verdict import RULES_VERSION
from d2defense.environment import library_versions
from d2defense.report.results import (
    EXAMPLES_FILE,
    HISTOGRAM_FILE,
    RESULT_FILE,
    SCHEMA_VERSION,
    read_result,
)
from d2defense.user_modules import source_digests


@dataclass(frozen=True)
class CheckpointFiles:
    """What is known of a checkpoint's files without loading them.

    Attributes:
        facts: ``checkpoint`` of the result.
        bases: SHA-256 of the config together with the files that it builds upon; empty where it
            stands alone.
        config_files: every file or folder that the config is made of.
        versions: what the file system says of the files, to notice that they were replaced.
    """

    facts: dict[str, Any]
    bases: str
    config_files: tuple[Path, ...]
    versions: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, source: CheckpointSource, inspector: Inspector) -> CheckpointFiles:
        """Hash the files of a checkpoint.

        Args:
            source: the checkpoint.
            inspector: reads the files.

        Raises:
            OSError, CheckpointError: one cannot be read.
        """
        versions = _versions(source)
        weights, config, document = inspector(
            [
                Question("digest", source.weights),
                Question("digest", source.config),
                Question("document", source.config),
            ]
        )
        for digest in (weights, config):
            if isinstance(digest, CheckpointError):
                raise digest
        bases, config_files = document, (source.config,)
        if source.trusted_config:
            bases, config_files = _trusted_config(source.config)
        elif isinstance(document, CheckpointError):  # the scan will say so, if it may read it all
            bases, config_files = "", (source.config.parent,)
        elif document:
            # Bases of an untrusted config lie in its folder, and may be links within it.
            config_files = (source.config.parent,)
        facts = {
            "path": str(source.weights),
            "config": str(source.config),
            "format": source.format,
            "sha256": weights,
            "config_sha256": config,
            "size_bytes": versions[0][2],
            **place_facts(source),
        }
        return cls(facts, bases, config_files, versions)

    def are_unchanged(self, source: CheckpointSource) -> bool:
        """Whether the files are still those that were hashed."""
        try:
            return self.versions == _versions(source)
        except OSError:
            return False


def place_facts(source: CheckpointSource) -> dict[str, Any]:
    """What ``checkpoint`` of a result says of the place of a checkpoint among others."""
    return {
        "member": source.member,
        "copies": list(source.copies),
        "left_out": list(source.left_out),
    }


def _trusted_config(path: Path) -> tuple[str, tuple[Path, ...]]:
    """``bases`` and ``config_files`` of a config that the user vouches for."""
    try:
        document = read_config_file(path, trusted=True)
    except CheckpointError:  # the scan will say so
        return "", (path,)
    return _digest(document.content), document.files


def _versions(source: CheckpointSource) -> tuple[tuple[int, ...], ...]:
    found = [os.stat(path) for path in (source.weights, source.config)]
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def settings_key(
    images: ScanImages,
    settings: ScanSettings,
    calibration: Calibration,
    device: str | None,
    references: Sequence[CheckpointSource] = (),
) -> str:
    """SHA-256 over all that decides on results beside the checkpoints themselves.

    That is the dataset, the settings with the triggers, the calibration, the references with their
    files, the kind of device, the rules of verdicts, the versions of d2defense and of the libraries
    that compute, and the source of the user's own modules.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "rules_version": RULES_VERSION,
        "dataset": [images.name, images.fingerprint, images.class_names],
        "further": dataset_fingerprint(images.further),
        "settings": asdict(settings),
        "calibration": asdict(calibration),
        "references": [
            [each.name, each.member, *map(file_sha256, (each.weights, each.config))]
            for each in references
        ],
        "null": asdict(settings.search.null) if settings.search.is_on else None,
        "device": device and device.partition(":")[0],
        "versions": library_versions(),
        "modules": source_digests(),
    }
    return _digest(content)


def scan_key(files: CheckpointFiles, source: CheckpointSource, settings: str) -> str:
    """What identifies the scan of one checkpoint: its files and :func:`settings_key`."""
    facts = files.facts
    return _digest(
        [
            *(facts[key] for key in ("sha256", "config_sha256", "format", "member")),
            files.bases,
            source.warnings,
            settings,
        ]
    )


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def finished_result(folder: Path, key: str, with_figures: bool) -> dict[str, Any] | None:
    """The result that an earlier scan left in a folder, if it is what this scan would find.

    Args:
        folder: of the checkpoint in the output.
        key: :func:`scan_key`.
        with_figures: whether the figures must be there, too.

    Returns:
        The result; None if there is none, if it is of something else, or if it is an error, which
        another attempt may mend.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    result = read_result(path)
    if result["verdict"] == "error" or result["scan_key"] != key:
        return None
    # Detectors without objectness have no histogram.
    drawn = [EXAMPLES_FILE, *([HISTOGRAM_FILE] if result["histogram"] else [])]
    if with_figures and not all((folder / name).is_file() for name in drawn):
        return None
    return result
