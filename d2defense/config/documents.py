# SPDX-License-Identifier: Apache-2.0
"""Plain YAML configs and the files that they build upon, the user's own and untrusted ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from d2defense.files import open_readable

from .zoo import zoo_config

#: Bytes of a config with all the files that it builds upon. A dumped one has 10,000.
MAX_BYTES = 256 << 10
# A dumped config has about 500 values.
MAX_VALUES = 100_000
MAX_SCALAR = 1000
MAX_DEPTH = 50
#: Files that one config may be made of, itself included.
MAX_FILES = 8

BASE_KEY = "_BASE_"
MODEL_ZOO_PREFIX = "model_zoo://"

_PREFIX = "tag:yaml.org,2002:"
_TAGS = frozenset(_PREFIX + tag for tag in ("map", "seq", "str", "int", "float", "bool", "null"))
# What LazyConfig.save writes for what a LazyConfig is made of beside plain values; read as such.
_TUPLE = f"{_PREFIX}python/tuple"
_SHAPE, _SHAPE_CLASS = f"{_PREFIX}python/object:", "detectron2.layers.shape_spec.ShapeSpec"

#: From a config and a name under its ``_BASE_`` to the file to read.
FindBase = Callable[[Path, str], Path]


class ConfigFileError(ValueError):
    """A file is no config that can be read.

    Args:
        path: of the file.
        reason: why.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


@dataclass(frozen=True)
class ConfigDocument:
    """A config with everything that it builds upon.

    Attributes:
        content: the values, those of the bases below those of the file itself.
        files: that it was made of, the file itself first.
    """

    content: dict[str, Any]
    files: tuple[Path, ...]


def load_document(path: Path, find_base: FindBase) -> ConfigDocument:
    """Read a YAML config and the files under its ``_BASE_``, merged as Detectron2 merges them.

    Detectron2's own loader would construct Python objects; only mappings, lists and scalars are
    read here. A config and its bases are bounded together, whoever wrote them.

    Args:
        path: of the config.
        find_base: where bases are read from: :func:`as_detectron2` or :func:`inside_folder_of`.

    Raises:
        ConfigFileError: unreadable, not plain YAML, too large, no mapping, or a base that is
            refused or refers to itself.
    """
    return _Reader(find_base).read(Path(path))


def as_detectron2(path: Path, base: str) -> Path:
    """Where Detectron2 reads a base from: for configs that the user wrote or chose.

    Relative to the config, absolute, below the home folder, or a URL. Beside that,
    ``model_zoo://NAME`` is a config of the installed model zoo.

    Raises:
        ConfigFileError: not in the zoo, or a URL that cannot be had.
    """
    if base.startswith(MODEL_ZOO_PREFIX):
        name = base.removeprefix(MODEL_ZOO_PREFIX)
        found = zoo_config(name)
        if found is None:
            raise ConfigFileError(path, f"the model zoo has no config {name[:100]!r}")
        return found
    if base.startswith(("http://", "https://")):
        try:
            return Path(PathManager.get_local_path(base))
        except Exception as error:  # urllib's, the cache folder's, ...
            raise ConfigFileError(
                path, f"its {BASE_KEY} cannot be fetched: {base[:100]}: {error}"
            ) from None
    return path.parent / os.path.expanduser(base)


def inside_folder_of(config: Path) -> FindBase:
    """Bases of a config that nobody vouches for: files in its own folder or below.

    A base that leads elsewhere is refused, because what Detectron2 would read there is not what
    was given to be looked at.

    Raises:
        ConfigFileError: the folder cannot be found.
    """
    try:
        root = config.parent.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigFileError(config, f"cannot be opened: {error}") from None

    def find(path: Path, base: str) -> Path:
        if not base.startswith(("~", "/")) and "://" not in base:
            try:
                file = (path.parent / base).resolve()
                if file.is_relative_to(root) and file.is_file():
                    return file
            except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links
                pass
        raise ConfigFileError(
            path,
            f"its {BASE_KEY} {base[:100]!r} is no file in its folder; give the whole config, which "
            "Detectron2 writes beside its checkpoints (config.yaml)",
        )

    return find


class _Reader:
    """Reads one config with its bases."""

    def __init__(self, find_base: FindBase) -> None:
        self._find_base = find_base
        self._files: list[Path] = []
        self._num_bytes = 0

    def read(self, path: Path) -> ConfigDocument:
        return ConfigDocument(self._read(path), tuple(self._files))

    def _read(self, path: Path) -> dict[str, Any]:
        if len(self._files) >= MAX_FILES:
            raise ConfigFileError(
                self._files[0],
                f"its {BASE_KEY} files refer to each other, or are more than {MAX_FILES - 1}",
            )
        self._files.append(path)
        content = self._read_plain(path)
        bases = content.pop(BASE_KEY, [])
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str) or not base or "\0" in base:
                raise ConfigFileError(path, f"its {BASE_KEY} names no file")
            _merge(self._read(self._find_base(path, base)), merged, path)
        _merge(content, merged, path)
        return merged

    def _read_plain(self, path: Path) -> dict[str, Any]:
        if path.suffix == ".py":
            raise ConfigFileError(
                path,
                "a LazyConfig, which is Python and would have to be executed; give a YAML config",
            )
        allowed = MAX_BYTES - self._num_bytes
        try:
            with open_readable(path) as stream:
                text = stream.read(allowed + 1)
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            raise ConfigFileError(path, f"cannot be opened: {reason}") from None
        if len(text) > allowed:
            raise ConfigFileError(
                self._files[0],
                f"larger than {MAX_BYTES} bytes"
                + (f" with its {BASE_KEY} files" if self._num_bytes else ""),
            )
        self._num_bytes += len(text)
        try:
            content = yaml.load(text.decode("utf-8"), _PlainLoader)
        except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
            raise ConfigFileError(path, f"not a plain YAML config: {error}") from None
        if not isinstance(content, dict):
            raise ConfigFileError(path, "not a Detectron2 config: no mapping at its top")
        if not _has_at_most(content, MAX_VALUES):
            raise ConfigFileError(path, f"its aliases expand to more than {MAX_VALUES} values")
        return content


class _PlainLoader(yaml.SafeLoader):
    """Mappings, lists and scalars; no tags of other types, no merges, nothing very long or deep."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        _make_plain(node)
        if node.tag not in _TAGS:
            # A merge (<<) copies what it merges, again and again if merges are nested.
            raise yaml.YAMLError(f"it uses the tag {node.tag.removeprefix(_PREFIX)[:80]!r}")
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_SCALAR:
            raise yaml.YAMLError(f"it has a value of {len(node.value)} characters")
        return node


def _make_plain(node: yaml.Node) -> None:
    """Take the tags of a LazyConfig for mappings and lists, in place; nothing is looked up."""
    if isinstance(node, yaml.SequenceNode) and node.tag == _TUPLE:
        node.tag = f"{_PREFIX}seq"
    elif isinstance(node, yaml.MappingNode) and node.tag == _SHAPE + _SHAPE_CLASS:
        node.tag = f"{_PREFIX}map"
        text = f"{_PREFIX}str"
        node.value.append((yaml.ScalarNode(text, "_target_"), yaml.ScalarNode(text, _SHAPE_CLASS)))


def _merge(upper: dict[str, Any], lower: dict[str, Any], path: Path) -> None:
    """Put the values of ``upper`` over those of ``lower``, in place."""
    for key, value in upper.items():
        if isinstance(value, dict) and key in lower:
            if not isinstance(lower[key], dict):
                raise ConfigFileError(
                    path, f"its key {str(key)[:80]!r} is a value in its {BASE_KEY}"
                )
            _merge(value, lower[key], path)
        else:
            lower[key] = value


def _has_at_most(content: object, limit: int) -> bool:
    """Whether a document holds at most ``limit`` values with every alias written out.

    Mappings are copied and values are printed in messages, which would take for ever where a
    kilobyte of aliases stands for billions of values, or for a value inside itself.
    """
    pending, count = [content], 0
    while pending and count <= limit:
        value = pending.pop()
        if isinstance(value, dict | list):
            count += len(value)
            pending.extend(value.values() if isinstance(value, dict) else value)
    return count <= limit
