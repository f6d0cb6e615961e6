# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration of a checkpoint without trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.config.compat import downgrade_config, upgrade_config

from d2defense.config import OWN_NODES, get_base_cfg
from d2defense.config.documents import (
    ConfigDocument,
    ConfigFileError,
    as_detectron2,
    inside_folder_of,
    load_document,
)
from d2defense.config.zoo import is_zoo_config
from d2defense.modeling import DescriptionError, UnsupportedArchitectureError, instrument_config

from .errors import CheckpointError
from .lazy_config import config_of_lazy, is_lazy, read_zoo_config
from .limits import find_excess
from .names import find_unknown_name
from .trainable import find_untrainable

# What a scan, a repair or an evaluation sets itself. Those of Detectron2 are read before they are
# dropped, since conversion from its version 1 looks at them. Ours are not read at all: they may
# hold keys of another version of d2defense, or of parts that were registered by somebody else.
_DROPPED = ("DATASETS", "DATALOADER")


def read_config_file(path: Path, trusted: bool = False) -> ConfigDocument:
    """The values of a checkpoint's config, and the files that it is made of.

    Args:
        path: of the config.
        trusted: whether the user vouches for it, so that ``_BASE_`` means what it means to
            Detectron2; else it may only lead to files in the config's folder.

    Raises:
        CheckpointError: not plain YAML, no mapping, or a ``_BASE_`` that leads elsewhere.
    """
    path = Path(path)
    if trusted and path.suffix == ".py" and is_zoo_config(path):
        try:
            return ConfigDocument(read_zoo_config(path), (path,))
        except Exception as error:  # it is Python, and may want what is not installed
            raise CheckpointError(path, f"a LazyConfig that cannot be read: {error}") from None
    try:
        return load_document(path, as_detectron2 if trusted else inside_folder_of(path))
    except ConfigFileError as error:
        raise CheckpointError(error.path, error.reason) from None


def load_config(path: Path, trusted: bool = False, device: str | None = None) -> CfgNode:
    """The instrumented configuration that ``path`` describes, in the keys of ``get_base_cfg``.

    Only plain YAML is read: Detectron2's own loader would construct Python objects and follow
    ``_BASE_`` to any file. Of a LazyConfig, names are looked up in a table of Detectron2's parts
    (:mod:`d2defense.modeling.described`); nothing is imported for them. What a config says of
    weights, datasets, output folder, attack and defense is dropped. Configs of Detectron2's
    version 1 are converted.

    Args:
        path: of the config.
        trusted: as :func:`read_config_file`.
        device: takes the place of ``MODEL.DEVICE``, which may name one that is not here.

    Raises:
        CheckpointError: not plain YAML, unknown keys or names, sizes that no detector has, or an
            architecture that cannot be probed.
    """
    path = Path(path)
    content = read_config_file(path, trusted).content
    content = {node: value for node, value in content.items() if node not in OWN_NODES}
    defaults = get_base_cfg()
    described = ""
    try:
        if is_lazy(content):
            cfg = config_of_lazy(content, defaults)
            described, cfg.MODEL.DESCRIPTION = cfg.MODEL.DESCRIPTION, ""
        else:
            cfg = _merged(content, defaults)
        if cfg.MODEL.DESCRIPTION:
            raise ValueError("MODEL.DESCRIPTION is not for configs")
        cfg = instrument_config(cfg)
        cfg.MODEL.WEIGHTS = ""
        if device is not None:
            cfg.MODEL.DEVICE = device
        cfg.OUTPUT_DIR = defaults.OUTPUT_DIR
        for node in _DROPPED:
            cfg[node] = defaults[node]
        problem = find_excess(cfg) or find_unknown_name(cfg)
    except (UnsupportedArchitectureError, DescriptionError) as error:
        raise CheckpointError(path, str(error)) from None
    except Exception as error:  # yacs raises KeyError, ValueError, AssertionError, TypeError, ...
        raise CheckpointError(path, f"not a Detectron2 config: {error}") from None
    if problem:
        raise CheckpointError(path, problem)
    cfg.MODEL.DESCRIPTION = described
    problem = None if trusted else find_untrainable(cfg)
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
