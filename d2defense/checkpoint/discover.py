# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints a path stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from d2defense.config.zoo import zoo_config, zoo_configs

from .errors import CheckpointError, NoCheckpointError
from .pytorch import is_other_pytorch_file
from .weights import WEIGHTS_SUFFIXES, describe_suffixes

CONFIG_NAME = "config.yaml"
FINAL_WEIGHTS_NAME = "model_final.pth"

_FINAL_NAMES = tuple(f"model_final{suffix}" for suffix in WEIGHTS_SUFFIXES)
_NUMBERED = re.compile(r"model_(\d{1,18})\.pth")
_MARKER_NAME = "last_checkpoint"
_LAZY_CONFIG_NAMES = ("config.py", "config.yaml.pkl")
# Other formats of models, which hold code or none of PyTorch's modules.
_FOREIGN_SUFFIXES = {
    ".ts": "a TorchScript archive; it holds code and is never loaded",
    ".torchscript": "a TorchScript archive; it holds code and is never loaded",
    ".onnx": "an ONNX model; its modules cannot be told apart",
    ".py": "a Python file; it is never executed",
}
_ZIP_MAGIC = b"PK\x03\x04"

# Files of a scan's output folder, where each checkpoint gets a folder of its name.
_RESERVED_NAMES = ("report.html", "summary.csv", "summary.json")
_MAX_NAME_BYTES = 120


@dataclass(frozen=True)
class CheckpointSource:
    """One checkpoint to scan, or why there is none.

    Attributes:
        name: unique among the sources of one call, usable as the name of a folder.
        path: what the caller named or the walk found.
        weights: the weights file, None where ``error`` is set.
        config: its configuration file, None where ``error`` is set.
        trusted_config: whether the caller named that file, or one of the model zoo.
        error: why the path holds no checkpoint.
    """

    name: str
    path: Path
    weights: Path | None = None
    config: Path | None = None
    trusted_config: bool = False
    error: CheckpointError | None = None

    @property
    def format(self) -> str | None:
        """``pth``, ``pt``, ``pkl`` or ``safetensors``; None where ``error`` is set."""
        return self.weights.suffix.lstrip(".") if self.weights else None


class _Found(NamedTuple):
    path: Path
    weights: Path | None = None
    config: Path | None = None
    trusted_config: bool = False
    error: CheckpointError | None = None


def find_checkpoints(
    paths: Iterable[str | Path], config_file: Path | None = None, model_zoo: str | None = None
) -> list[CheckpointSource]:
    """The checkpoints below ``paths``, in their order, each once.

    A path is a weights file, or a folder to search at any depth. A folder with ``config.yaml`` is a
    Detectron2 output folder and stands for one checkpoint: ``model_final``, else the file that
    ``last_checkpoint`` names, else the newest ``model_<iteration>.pth``. In any other folder each
    weights file is a checkpoint, unless it is known to hold something else (predictions, the state
    of an optimizer). Symbolic links to folders are not followed, and files must lie, with links
    resolved, inside the path that the caller named.

    Args:
        paths: files and folders.
        config_file: configuration of checkpoints that have no ``config.yaml`` beside them.
        model_zoo: name of a config of the installed Detectron2's model zoo, to the same end.

    Returns:
        The sources. A path that holds no checkpoint comes back as one with an ``error``.

    Raises:
        ValueError: both ``config_file`` and ``model_zoo``, or a name that is not in the zoo.
    """
    finder = _Finder(_fallback_config(config_file, model_zoo))
    sources: list[CheckpointSource] = []
    seen: set[Path] = set()
    names = set(_RESERVED_NAMES)
    for path in map(Path, paths):
        try:
            expanded = list(finder.expand(path))
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, no permission, ...
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            expanded = [_Found(path, error=CheckpointError(path, reason))]
        for found in expanded:
            key = (found.weights or found.path).absolute()
            if key in seen:
                continue
            seen.add(key)
            sources.append(CheckpointSource(_unique_name(found.path, names), *found))
    return sources


def _fallback_config(config_file: Path | None, model_zoo: str | None) -> Path | None:
    if config_file is not None and model_zoo is not None:
        raise ValueError("give a config file or a name of the model zoo, not both")
    if model_zoo is None:
        return None if config_file is None else Path(config_file)
    found = zoo_config(model_zoo)
    if found is None:
        known = zoo_configs()
        hint = f"such as {known[len(known) // 4]}" if known else "which has no configs installed"
        raise ValueError(f"{model_zoo[:100]!r} is not in Detectron2's model zoo, {hint}")
    return found


@dataclass(frozen=True)
class _Finder:
    """Finds checkpoints; ``fallback`` is the config of those that have none beside them."""

    fallback: Path | None

    def expand(self, path: Path) -> Iterator[_Found]:
        if not path.exists():
            yield _Found(path, error=CheckpointError(path, "no such file or folder"))
        elif path.is_file():
            yield self._named_file(path)
        elif path.is_dir():
            yield from self._named_folder(path)
        else:
            yield _Found(path, error=CheckpointError(path, "a pipe, a socket or a device"))

    def _named_file(self, path: Path) -> _Found:
        reason = _FOREIGN_SUFFIXES.get(path.suffix)
        if reason is None and path.suffix not in WEIGHTS_SUFFIXES:
            reason = f"not a weights file ({describe_suffixes()})"
        if reason is not None:
            return _Found(path, error=CheckpointError(path, reason))
        return self._with_config(path, path, None)

    def _named_folder(self, root: Path) -> Iterator[_Found]:
        unreadable: list[OSError] = []
        found = False
        for current, folders, files in os.walk(root, onerror=unreadable.append):
            folders.sort()
            here = list(self._folder(Path(current), sorted(files), root))
            if here:
                found = True
                # What lies below an output folder (inference/, TensorBoard's events) belongs to it.
                if CONFIG_NAME in files or any(name in files for name in _FINAL_NAMES):
                    folders.clear()
                yield from here
        for error in unreadable:
            found = True
            yield _Found(
                Path(error.filename),
                error=CheckpointError(error.filename, f"cannot be read: {error.strerror}"),
            )
        if not found:
            reason = (
                f"no checkpoint in this folder ({describe_suffixes()})"
                if any(root.iterdir())
                else "the folder is empty"
            )
            yield _Found(root, error=NoCheckpointError(root, reason))

    def _folder(self, folder: Path, files: list[str], root: Path) -> Iterator[_Found]:
        """The checkpoints directly in ``folder``."""
        names = [*files, *(n for n in _FINAL_NAMES if n not in files and (folder / n).is_dir())]
        weights = [folder / name for name in names if Path(name).suffix in WEIGHTS_SUFFIXES]
        if CONFIG_NAME not in files:
            yield from (
                _Found(folder / name, error=CheckpointError(folder / name, reason))
                for name in files
                if (reason := _foreign_model(folder / name)) is not None
            )
        try:
            chosen = _chosen(folder, weights, files)
        except CheckpointError as error:
            yield _Found(folder, error=error)
            return
        if chosen is not None:
            yield self._with_config(chosen, folder, root)
            return
        candidates = [path for path in weights if not is_other_pytorch_file(path)]
        if (newest := _newest(candidates)) is not None:
            yield self._with_config(newest, folder, root)
        elif len(candidates) == 1:
            yield self._with_config(candidates[0], folder, root)
        elif candidates:
            for path in candidates:
                yield self._with_config(path, path, root)
        elif CONFIG_NAME in files and _is_detectron2_config(folder / CONFIG_NAME):
            reason = f"no weights file ({describe_suffixes()}) beside {CONFIG_NAME}"
            yield _Found(folder, error=CheckpointError(folder, reason))

    def _with_config(self, weights: Path, path: Path, root: Path | None) -> _Found:
        """The checkpoint ``weights``, reported as ``path``, with its config.

        ``root`` is the folder that the caller named; None where it was the file itself, which may
        be a link to anywhere.
        """
        config = weights.parent / CONFIG_NAME
        try:
            _check_file(weights, root, path)
            if os.path.lexists(config):
                _check_file(config, root or weights.parent, path)
            elif self.fallback is not None:
                config = self.fallback
            else:
                raise CheckpointError(path, _no_config(weights, path))
        except CheckpointError as error:
            return _Found(path, error=error)
        return _Found(path, weights, config, config is self.fallback)


def _chosen(folder: Path, weights: list[Path], files: list[str]) -> Path | None:
    """The weights that Detectron2's conventions choose in an output folder."""
    names = {path.name: path for path in weights}
    final = [names[name] for name in _FINAL_NAMES if name in names]
    if final:
        return final[0]
    marker = folder / _MARKER_NAME
    if marker.name in files and marker.is_file():
        name = marker.read_bytes()[:256].decode("utf-8", errors="replace").strip()
        path = names.get(Path(name).name)
        if path is None:
            raise CheckpointError(folder, f"{_MARKER_NAME} names {name!r}, which is not here")
        return path
    return None


def _newest(weights: list[Path]) -> Path | None:
    """The last of a run's numbered checkpoints; None if there are other weights."""
    numbers = [_NUMBERED.fullmatch(path.name) for path in weights]
    if not weights or not all(numbers):
        return None
    return max(zip(numbers, weights, strict=True), key=lambda pair: int(pair[0].group(1)))[1]


def _no_config(weights: Path, path: Path) -> str:
    lazy = next((n for n in _LAZY_CONFIG_NAMES if os.path.lexists(weights.parent / n)), None)
    if lazy is not None:
        return f"no {CONFIG_NAME}; {lazy} is a LazyConfig, which would have to be executed"
    return f"no {CONFIG_NAME} beside {'it' if weights == path else weights.name}"


def _foreign_model(path: Path) -> str | None:
    """Why a file is a model that cannot be scanned; None for other files.

    Other programs use the same endings, so only zip archives count.
    """
    if path.suffix not in (".ts", ".torchscript") or not path.is_file() or path.is_symlink():
        return None
    with open(path, "rb") as stream:
        return _FOREIGN_SUFFIXES[path.suffix] if stream.read(4) == _ZIP_MAGIC else None


def _is_detectron2_config(path: Path) -> bool:
    """Whether a ``config.yaml`` without weights is worth a word: other programs use the name."""
    if not path.is_file() or path.is_symlink():
        return True
    with open(path, "rb") as stream:
        start = stream.read(1 << 16)
    return not start.strip() or re.search(rb"^(MODEL|_BASE_)\s*:", start, re.MULTILINE) is not None


def _check_file(file: Path, root: Path | None, path: Path) -> None:
    """Check that a file is one, and lies inside ``root`` with links resolved.

    Raises:
        CheckpointError: it is not; it names ``path``.
    """
    name = "it" if file == path else file.name
    if not file.exists():
        raise CheckpointError(path, f"{name} is a link to nothing")
    if root is not None and not file.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(path, f"{name} is a link that leads out of {root}")
    if not file.is_file():
        raise CheckpointError(path, f"{name} is not a regular file")


def _unique_name(path: Path, taken: set[str]) -> str:
    """A folder name for the results of ``path``: its own, made safe and told apart by a number."""
    stem = path.absolute().name or "checkpoint"
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).strip(".")
    # File systems limit names in bytes, and a number may follow.
    safe = safe.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") or "checkpoint"
    name, number = safe, 2
    while name in taken:
        name, number = f"{safe}_{number}", number + 1
    taken.add(name)
    return name
