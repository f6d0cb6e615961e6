# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration beside a checkpoint without trusting it."""

from __future__ import annotations

from pathlib import Path

import yaml
from detectron2.config import CfgNode

from d2defense.config import get_d2defense_cfg
from d2defense.modeling import UnsupportedArchitectureError, instrument_config

from .errors import CheckpointError

_MAX_CONFIG_BYTES = 1 << 20
# A dumped config has about 500 values.
_MAX_CONFIG_VALUES = 100_000


def load_config(path: Path) -> CfgNode:
    """The instrumented configuration that ``path`` describes.

    Only plain YAML is read: Detectron2's own loader would construct Python objects and follow
    ``_BASE_`` to any file. What it says of weights, datasets, output folder, attack and defense is
    dropped.

    Raises:
        CheckpointError: not plain YAML, unknown keys, or an architecture that cannot be probed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(path, f"larger than {_MAX_CONFIG_BYTES} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(path, f"not a plain YAML config: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, "not a Detectron2 config: no mapping at its top")
    if not _has_at_most(content, _MAX_CONFIG_VALUES):
        raise CheckpointError(path, f"its aliases expand to more than {_MAX_CONFIG_VALUES} values")
    if "_BASE_" in content:
        raise CheckpointError(path, "refers to another file (_BASE_); give the dumped config")
    if content.get("VERSION", 2) != 2:
        raise CheckpointError(path, f"config VERSION {content['VERSION']!r} is not 2")
    cfg = get_d2defense_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
        cfg = instrument_config(cfg)
    except UnsupportedArchitectureError as error:
        raise CheckpointError(path, str(error)) from None
    except Exception as error:  # yacs raises KeyError, ValueError, AssertionError, TypeError, ...
        raise CheckpointError(path, f"not a Detectron2 config: {error}") from None
    defaults = get_d2defense_cfg()
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = defaults.OUTPUT_DIR
    for node in ("DATASETS", "ATTACK", "DEFENSE", "REMOVAL"):
        cfg[node] = defaults[node]
    return cfg


def _has_at_most(content: object, limit: int) -> bool:
    """Whether a document holds at most ``limit`` values with every alias written out.

    Mappings are copied and values are printed in messages, which would take for ever where a
    kilobyte of aliases stands for billions of values, or for a value inside itself.
    """
    pending, count = [content], 0
    while pending and count <= limit:
        value = pending.pop()
        children = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list | tuple | set):
            count += len(value)
            pending.extend(children)
    return count <= limit
