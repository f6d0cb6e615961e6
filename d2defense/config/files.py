# SPDX-License-Identifier: Apache-2.0
"""Reading the project's own config files, which may build on Detectron2's model zoo."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode

from .documents import as_detectron2, load_document


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
        ConfigFileError: the file or one that it builds on cannot be read, is no config, or they
            build on each other in a circle.
        KeyError: a key that does not exist.
    """
    cfg.merge_from_other_cfg(CfgNode(load_document(Path(path), as_detectron2).content))
