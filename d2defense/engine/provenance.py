# SPDX-License-Identifier: Apache-2.0
"""What weights were made from: seed, data, attack, versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from d2defense.attacks import PoisoningDatasetMapper
from d2defense.checkpoint.output_folder import CONFIG_NAME, FINAL_WEIGHTS_NAME
from d2defense.checkpoint.regular_file import file_sha256
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.environment import library_versions
from d2defense.files import write_json
from d2defense.user_modules import source_digests

PROVENANCE_NAME = "provenance.json"


def training_provenance(
    cfg: CfgNode, known_datasets: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What a training's weights follow from, as a JSON document.

    Args:
        cfg: the training's configuration; its datasets are registered.
        known_datasets: entries of ``datasets`` that need not be made again. A fingerprint reads
            every byte of a dataset's images.

    Returns:
        ``seed``; ``attack``, None or its ``effect``, the ``trigger``'s family, its ``settings``
        (the ``ATTACK`` node) and the numbers of ``poisoned_images`` and ``spurious_images``;
        ``removal``, None or its ``method`` and ``settings`` (the ``REMOVAL`` node); ``train`` and
        ``test``, names of datasets; ``datasets``, by name the number of ``images`` and the
        ``fingerprint``; ``versions``; ``modules``, SHA-256 of the source of the user's own.

    Raises:
        DatasetError: an image cannot be read.
    """
    known = known_datasets or {}
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    return {
        "seed": cfg.SEED,
        "attack": _attack(cfg),
        "removal": _removal(cfg),
        "train": list(cfg.DATASETS.TRAIN),
        "test": list(cfg.DATASETS.TEST),
        "datasets": {name: known.get(name) or _dataset(name) for name in names},
        "versions": library_versions(),
        "modules": source_digests(),
    }


def write_start(cfg: CfgNode, first_iteration: int) -> None:
    """Write ``provenance.json`` beside the ``config.yaml`` of a training that begins.

    A training that is resumed keeps the fingerprints that it began with.

    Raises:
        DatasetError: an image cannot be read.
    """
    folder = Path(cfg.OUTPUT_DIR)
    before = read_provenance(folder) if first_iteration else {}
    document = {
        "config_sha256": file_sha256(folder / CONFIG_NAME),
        **training_provenance(cfg, before.get("datasets")),
        "first_iteration": first_iteration,
        "result": None,
    }
    write_json(folder / PROVENANCE_NAME, document)


def write_end(output_dir: Path, iterations: int, seconds: float) -> None:
    """Add the ``result`` of a training to its ``provenance.json``.

    Args:
        output_dir: its folder.
        iterations: steps in all, also those before it was resumed.
        seconds: wall clock since :func:`write_start`.
    """
    result = {
        "iterations": iterations,
        "seconds": round(seconds, 1),
        "sha256": file_sha256(output_dir / FINAL_WEIGHTS_NAME),
    }
    write_json(output_dir / PROVENANCE_NAME, read_provenance(output_dir) | {"result": result})


def read_provenance(folder: Path) -> dict[str, Any]:
    """The provenance in a folder; empty if there is none that can be read."""
    try:
        document = json.loads((folder / PROVENANCE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _attack(cfg: CfgNode) -> dict[str, Any] | None:
    if not cfg.ATTACK.EFFECT:
        return None
    selection = PoisoningDatasetMapper(cfg, is_train=True).selection
    return {
        "effect": cfg.ATTACK.EFFECT,
        "trigger": cfg.ATTACK.TRIGGER.FAMILY,
        "settings": yaml.safe_load(cfg.ATTACK.dump()),
        "poisoned_images": len(selection.poisoned),
        "spurious_images": len(selection.spurious),
    }


def _removal(cfg: CfgNode) -> dict[str, Any] | None:
    if not cfg.REMOVAL.METHOD:
        return None
    return {"method": cfg.REMOVAL.METHOD, "settings": yaml.safe_load(cfg.REMOVAL.dump())}


def _dataset(name: str) -> dict[str, Any]:
    records = DatasetCatalog.get(name)
    return {"images": len(records), "fingerprint": dataset_fingerprint(records)}
