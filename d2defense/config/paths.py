# SPDX-License-Identifier: Apache-2.0
"""Where the configs that ship with the project lie."""

from __future__ import annotations

import os
from pathlib import Path


def config_root() -> Path:
    """The folder of the shipped configs: inside an installed package, else beside it.

    Raises:
        FileNotFoundError: neither place has one (a broken installation).
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "configs", package.parent / "configs"):
        if (root / "SynthSigns").is_dir():
            return root
    raise FileNotFoundError(f"the configs of d2defense are missing beside {package}")


def find_config(folder: str, source: str | Path, beside: Path = Path()) -> Path:
    """The file that a shipped name, or a path, stands for.

    Args:
        folder: of the shipped configs, such as "triggers".
        source: the name of a file there, without its end, or the path of a file.
        beside: what a path is relative to.

    Raises:
        ValueError: it is neither; the message lists the names.
    """
    shipped = {file.stem: file for file in sorted((config_root() / folder).glob("*.yaml"))}
    if str(source) in shipped:
        return shipped[str(source)]
    path = beside / source
    # What looks like a file is said to be missing when it is read.
    if path.suffix in (".yaml", ".yml") or os.path.exists(path):
        return path
    raise ValueError(f"{str(source)!r}: neither a file nor one of {', '.join(shipped)}")
