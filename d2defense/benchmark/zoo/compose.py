# SPDX-License-Identifier: Apache-2.0
"""The training configuration of one detector of a zoo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2defense.config import get_d2defense_cfg, merge_config_file
from d2defense.config.documents import as_detectron2, load_document

from .entries import ZooEntry
from .manifest import CLEAN, Manifest, ManifestError


def training_config(manifest: Manifest, entry: ZooEntry) -> CfgNode:
    """What ``d2defense train`` trains the detector with.

    The detector's config, with ``ATTACK`` of the attack's, with what the schedule, the attack and
    the group override.

    Raises:
        ManifestError: a config or an override that does not fit.
    """
    try:
        cfg = _read(manifest.config_path(manifest.detectors[entry.detector]["config"])).clone()
        if entry.attack:
            attack = manifest.config_path(manifest.attacks[entry.attack]["config"])
            cfg.ATTACK = _read(attack).ATTACK.clone()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (manifest.data["train"],), ()
        cfg.SEED = cfg.ATTACK.SEED = entry.training_seed
        schedule = manifest.schedules[entry.schedule]
        if schedule.get("start") == CLEAN and entry.start is None:
            cfg.MODEL.WEIGHTS = manifest.detectors[entry.detector]["start"]
        cfg.merge_from_list([part for pair in entry.overrides.items() for part in pair])
    except ManifestError:
        raise
    except (AssertionError, KeyError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise ManifestError(f"manifest {manifest.name}: {entry.name}: {reason}") from None
    return cfg


def digest(manifest: Manifest, entry: ZooEntry) -> str:
    """Changes with everything that the manifest and its configs say of a training.

    Defaults of the code are left out: a key that a new version brings makes no detector stale.
    """
    content: dict[str, Any] = {
        "detector": _content(manifest, manifest.detectors[entry.detector]["config"]),
        "start": None if entry.start else manifest.detectors[entry.detector].get("start"),
        "schedule": {**manifest.schedules[entry.schedule]},
        "overrides": {**entry.overrides},
        "seed": entry.training_seed,
        "train": manifest.data["train"],
    }
    content["detector"].pop("OUTPUT_DIR", None)
    if entry.attack:
        attack = _content(manifest, manifest.attacks[entry.attack]["config"])
        content["attack"] = attack.get("ATTACK", {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _read(path: Path) -> CfgNode:
    """A config with all that it builds upon. A manifest names few, and each many times."""
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, path)
    return cfg


def _content(manifest: Manifest, name: str) -> dict[str, Any]:
    return dict(_document(manifest.config_path(name)))


@cache
def _document(path: Path) -> Mapping[str, Any]:
    return load_document(path, as_detectron2).content
