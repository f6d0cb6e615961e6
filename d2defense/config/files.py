# SPDX-License-Identifier: Apache-2.0
"""Reading the project's own config files, which may build on Detectron2's model zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode

MODEL_ZOO_PREFIX = "model_zoo://"


def merge_config_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge a YAML config and everything it builds on into ``cfg``, in place.

    As Detectron2's ``merge_from_file``, but that ``_BASE_`` may also name a config of the model
    zoo inside the installed Detectron2, ``model_zoo://COCO-Detection/faster_rcnn_R_50_C4_1x.yaml``,
    and that only plain YAML is read. For configs that the user wrote or chose; those of untrusted
    checkpoints go through :func:`d2defense.checkpoint.load_config`.

    Args:
        cfg: with d2defense's keys.
        path: of the file.

    Raises:
        OSError: the file or one below it cannot be read.
        ValueError: one is no config, or they build on each other in a circle.
        KeyError: a key that does not exist.
    """
    cfg.merge_from_other_cfg(CfgNode(_read(Path(path), ())))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"{path}: builds on itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a plain YAML config: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a config: no mapping at its top")
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    return _merged(_read(_base_path(path, str(base)), (*above, path.resolve())), content)


def _base_path(path: Path, base: str) -> Path:
    if not base.startswith(MODEL_ZOO_PREFIX):
        return path.parent / Path(base).expanduser()
    name = base.removeprefix(MODEL_ZOO_PREFIX)
    try:
        return Path(model_zoo.get_config_file(name))
    except RuntimeError:
        raise ValueError(f"{path}: the model zoo has no config {name!r}") from None


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with the values of ``above`` put over it, node by node."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merged(merged[key], value)
        merged[key] = value
    return merged
