# SPDX-License-Identifier: Apache-2.0
"""Where the configs that ship with the project lie."""

from __future__ import annotations

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
