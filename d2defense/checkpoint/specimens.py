# SPDX-License-Identifier: Apache-2.0
"""The small clean and backdoored detectors that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

from .discovery import find_checkpoints
from .source import CheckpointSource

PREFIX = "specimen://"


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


class SpecimenHandler(PathHandler):
    """Lets ``MODEL.WEIGHTS`` name a specimen: ``specimen://clean_0``."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(find_specimen(path.removeprefix(PREFIX)).weights)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).is_file()

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode)


PathManager.register_handler(SpecimenHandler(), allow_override=True)
