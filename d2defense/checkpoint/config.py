# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration of a checkpoint without trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.config.compat import downgrade_config, upgrade_config

from d2defense.config import get_d2defense_cfg
from d2defense.modeling import UnsupportedArchitectureError, instrument_config

from .errors import CheckpointError
from .limits import find_excess
from .names import find_unknown_name
from .yaml_file import load_document

# What a scan, a renewal or an evaluation sets itself.
_DROPPED = ("DATASETS", "DATALOADER", "ATTACK", "DEFENSE", "REMOVAL")


def load_config(path: Path) -> CfgNode:
    """The instrumented configuration that ``path`` describes.

    Only plain YAML is read: Detectron2's own loader would construct Python objects and follow
    ``_BASE_`` to any file. What it says of weights, datasets, output folder, attack and defense is
    dropped. Configs of Detectron2's version 1 are converted.

    Raises:
        CheckpointError: not plain YAML, unknown keys or names, sizes that no detector has, or an
            architecture that cannot be probed.
    """
    path = Path(path)
    content = load_document(path)
    if any(isinstance(value, dict) and "_target_" in value for value in content.values()):
        raise CheckpointError(
            path, "a LazyConfig, which names Python objects to call; give a CfgNode config"
        )
    defaults = get_d2defense_cfg()
    try:
        cfg = instrument_config(_merged(content, defaults))
        cfg.MODEL.WEIGHTS = ""
        cfg.OUTPUT_DIR = defaults.OUTPUT_DIR
        for node in _DROPPED:
            cfg[node] = defaults[node]
        problem = find_excess(cfg) or find_unknown_name(cfg)
    except UnsupportedArchitectureError as error:
        raise CheckpointError(path, str(error)) from None
    except Exception as error:  # yacs raises KeyError, ValueError, AssertionError, TypeError, ...
        raise CheckpointError(path, f"not a Detectron2 config: {error}") from None
    if problem:
        raise CheckpointError(path, problem)
    return cfg


def _merged(content: dict[str, Any], cfg: CfgNode) -> CfgNode:
    """``cfg`` with a document's values, converted if they are of an older version."""
    version = content.get("VERSION", _guess_version(content))
    if type(version) is not int or version not in (1, 2):
        raise ValueError(f"config VERSION {str(version)[:40]!r} is neither 1 nor 2")
    loaded = CfgNode(content)
    if version == cfg.VERSION:
        cfg = cfg.clone()
        cfg.merge_from_other_cfg(loaded)
        return cfg
    older = downgrade_config(cfg, to_version=version)
    older.merge_from_other_cfg(loaded)
    return upgrade_config(older)


def _guess_version(content: dict[str, Any]) -> int:
    """The version of a config that does not say, by the keys that Detectron2 looks for."""
    model, test = content.get("MODEL"), content.get("TEST")
    older = (isinstance(model, dict) and "WEIGHT" in model) or (
        isinstance(test, dict) and "AUG_ON" in test
    )
    return 1 if older else 2
