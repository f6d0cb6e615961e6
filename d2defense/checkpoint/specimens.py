# SPDX-License-Identifier: Apache-2.0
"""The small clean and backdoored detectors that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from .discovery import find_checkpoints
from .source import CheckpointSource


def specimens_root() -> Path:
    """The folder of the specimens, one output folder each."""
    return Path(str(resources.files("d2defense"))) / "assets" / "specimens"


def find_specimen(name: str) -> CheckpointSource:
    """A specimen by its name, such as "backdoored_0".

    Raises:
        FileNotFoundError: there is none of this name.
        CheckpointError: it is damaged.
    """
    folder = specimens_root() / name
    if not folder.is_dir():
        raise FileNotFoundError(f"specimen {name} is missing in {specimens_root()}: reinstall")
    (source,) = find_checkpoints([folder], only_final=True)
    if source.error:
        raise source.error
    return source
