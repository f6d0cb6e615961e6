# SPDX-License-Identifier: Apache-2.0
"""The configs of the installed Detectron2's model zoo, by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from detectron2 import model_zoo

_ANY_CONFIG = "Base-RCNN-FPN.yaml"
# Parts of LazyConfigs, and one of a classifier.
_WITHOUT_MODEL = (
    "common/data/",
    "common/train",
    "common/optim",
    "common/coco_schedule",
    "Misc/torchvision",
)


@cache
def zoo_root() -> Path | None:
    """Folder of the zoo's configs; None if this Detectron2 came without them."""
    try:
        return Path(model_zoo.get_config_file(_ANY_CONFIG)).resolve().parent
    except Exception:  # RuntimeError, and whatever pkg_resources raises without its metadata
        return None


@cache
def zoo_configs() -> tuple[str, ...]:
    """Names of the zoo's configs, such as ``COCO-Detection/faster_rcnn_R_50_C4_1x.yaml``.

    Those in Python (LazyConfigs) as far as they describe a model.
    """
    root = zoo_root()
    if root is None:
        return ()
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return tuple(
        sorted(
            name
            for name in names
            if name.endswith(".yaml")
            or (name.endswith(".py") and not name.startswith(_WITHOUT_MODEL))
        )
    )


def is_zoo_config(path: Path) -> bool:
    """Whether a file is one of the zoo's configs."""
    root = zoo_root()
    return root is not None and path.resolve() in {root / name for name in zoo_configs()}


def zoo_config(name: str) -> Path | None:
    """The file of a zoo config; None for a name that is not in the zoo.

    Only names that are in the list are looked up, so that no name leads elsewhere. The ending may
    be left out.
    """
    root = zoo_root()
    for candidate in (name, f"{name}.yaml", f"{name}.py"):
        if root is not None and candidate in zoo_configs():
            return root / candidate
    return None
