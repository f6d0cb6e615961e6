# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints a path stands for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError

CONFIG_NAME = "config.yaml"
FINAL_WEIGHTS_NAME = "model_final.pth"
WEIGHTS_SUFFIX = ".pth"

# Files of a scan's output folder, where each checkpoint gets a folder of its name.
_RESERVED_NAMES = ("report.html", "summary.csv", "summary.json")


@dataclass(frozen=True)
class CheckpointSource:
    """One checkpoint to scan, or why there is none.

    Attributes:
        name: unique among the sources of one call, usable as the name of a folder.
        path: what the caller named or the walk found.
        weights: the weights file, None where ``error`` is set.
        config: its configuration file, None where ``error`` is set.
        error: why the path holds no checkpoint.
    """

    name: str
    path: Path
    weights: Path | None = None
    config: Path | None = None
    error: CheckpointError | None = None


def find_checkpoints(paths: Iterable[str | Path]) -> list[CheckpointSource]:
    """The checkpoints below ``paths``, in their order, each once.

    A path is a weights file with ``config.yaml`` beside it, a Detectron2 output folder
    (``config.yaml`` and ``model_final.pth``, else the file that ``last_checkpoint`` names), or a
    folder of such folders at any depth. Symbolic links below a folder are not followed.
    A path that holds no checkpoint comes back as a source with an ``error``.
    """
    sources: list[CheckpointSource] = []
    seen: set[Path] = set()
    names = set(_RESERVED_NAMES)
    for path in map(Path, paths):
        try:
            expanded = list(_expand(path))
        except OSError as error:  # a name too long, a folder without permission, a pipe, ...
            expanded = [(path, None, None, CheckpointError(path, error.strerror or str(error)))]
        for found, weights, config, error in expanded:
            key = (weights or found).absolute()
            if key in seen:
                continue
            seen.add(key)
            name = _unique_name(found, names)
            sources.append(CheckpointSource(name, found, weights, config, error))
    return sources


_Found = tuple[Path, Path | None, Path | None, CheckpointError | None]


def _expand(path: Path) -> Iterator[_Found]:
    if not path.exists():
        yield path, None, None, CheckpointError(path, "no such file or folder")
    elif path.is_file():
        yield _weights_file(path)
    elif _is_output_folder(path):
        yield _output_folder(path)
    else:
        folders = list(_output_folders_below(path))
        if folders:
            for folder in folders:
                yield _output_folder(folder)
        else:
            reason = (
                "the folder is empty"
                if not any(path.iterdir())
                else f"no checkpoint in this folder ({CONFIG_NAME} beside *{WEIGHTS_SUFFIX})"
            )
            yield path, None, None, CheckpointError(path, reason)


def _is_output_folder(folder: Path) -> bool:
    return (folder / CONFIG_NAME).exists() or any(folder.glob(f"*{WEIGHTS_SUFFIX}"))


def _output_folders_below(folder: Path) -> Iterator[Path]:
    for current, folders, _ in os.walk(folder, followlinks=False):
        folders.sort()
        if Path(current) != folder and _is_output_folder(Path(current)):
            folders.clear()
            yield Path(current)


def _output_folder(folder: Path) -> _Found:
    config = folder / CONFIG_NAME
    try:
        weights = _weights_in(folder)
        if not config.is_file():
            raise CheckpointError(folder, f"no {CONFIG_NAME} beside {weights.name}")
    except CheckpointError as error:
        return folder, None, None, error
    return folder, weights, config, None


def _weights_in(folder: Path) -> Path:
    final = folder / FINAL_WEIGHTS_NAME
    if final.is_file():
        return final
    marker = folder / "last_checkpoint"
    if marker.is_file():
        name = marker.read_bytes()[:256].decode("utf-8", errors="replace").strip()
        weights = folder / Path(name).name
        if weights.suffix == WEIGHTS_SUFFIX and weights.is_file():
            return weights
        raise CheckpointError(folder, f"last_checkpoint names {name!r}, which is not here")
    candidates = sorted(folder.glob(f"*{WEIGHTS_SUFFIX}"))
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise CheckpointError(
            folder, f"several weights files and neither {FINAL_WEIGHTS_NAME} nor last_checkpoint"
        )
    raise CheckpointError(folder, f"no weights file (*{WEIGHTS_SUFFIX}) beside {CONFIG_NAME}")


def _weights_file(path: Path) -> _Found:
    config = path.parent / CONFIG_NAME
    if path.suffix != WEIGHTS_SUFFIX:
        return path, None, None, CheckpointError(path, f"not a *{WEIGHTS_SUFFIX} weights file")
    if not config.is_file():
        return path, None, None, CheckpointError(path, f"no {CONFIG_NAME} beside it")
    return path, path, config, None


def _unique_name(path: Path, taken: set[str]) -> str:
    """A folder name for the results of ``path``: its own, made safe and told apart by a number."""
    stem = path.absolute().name or "checkpoint"
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).strip(".")[:100]
    safe = safe or "checkpoint"
    name, number = safe, 2
    while name in taken:
        name, number = f"{safe}_{number}", number + 1
    taken.add(name)
    return name
