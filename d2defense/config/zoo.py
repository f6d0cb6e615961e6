# SPDX-License-Identifier: Apache-2.0
"""The configs of the installed Detectron2's model zoo, by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from detectron2 import model_zoo

_ANY_CONFIG = "Base-RCNN-FPN.yaml"


@cache
def zoo_root() -> Path | None:
    """Folder of the zoo's configs; None if this Detectron2 came without them."""
    try:
        return Path(model_zoo.get_config_file(_ANY_CONFIG)).resolve().parent
    except Exception:  # RuntimeError, and whatever pkg_resources raises without its metadata
        return None


@cache
def zoo_configs() -> tuple[str, ...]:
    """Names of the zoo's YAML configs, such as ``COCO-Detection/faster_rcnn_R_50_C4_1x.yaml``."""
    root = zoo_root()
    if root is None:
        return ()
    return tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml")))


def zoo_config(name: str) -> Path | None:
    """The file of a zoo config; None for a name that is not in the zoo.

    Only names that are in the list are looked up, so that no name leads elsewhere. The ending may
    be left out.
    """
    root = zoo_root()
    for candidate in (name, f"{name}.yaml"):
        if root is not None and candidate in zoo_configs():
            return root / candidate
    return None
