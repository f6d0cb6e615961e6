# SPDX-License-Identifier: Apache-2.0
"""Plain YAML from files that nobody vouches for, and the files that it builds upon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import CheckpointError
from .regular_file import file_bytes, open_regular
from .zoo import zoo_config_at_end, zoo_root

MAX_BYTES = 256 << 10
# A dumped config has about 500 values.
MAX_VALUES = 100_000
MAX_SCALAR = 1000
MAX_DEPTH = 50
#: Files that one config may be made of, itself included.
MAX_FILES = 8

BASE_KEY = "_BASE_"

_PREFIX = "tag:yaml.org,2002:"
_TAGS = frozenset(_PREFIX + tag for tag in ("map", "seq", "str", "int", "float", "bool", "null"))


class _PlainLoader(yaml.SafeLoader):
    """Mappings, lists and scalars; no tags of other types, no merges, nothing very long or deep."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node.tag not in _TAGS:
            # A merge (<<) copies what it merges, again and again if merges are nested.
            raise yaml.YAMLError(f"it uses the tag {node.tag.removeprefix(_PREFIX)[:80]!r}")
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_SCALAR:
            raise yaml.YAMLError(f"it has a value of {len(node.value)} characters")
        return node


def load_document(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with those of its ``_BASE_`` files below it.

    ``_BASE_`` means what it means to Detectron2, but is followed only to files inside the folder of
    ``path`` (with links resolved), or to configs of the installed model zoo, which are recognised
    by the end of the name and never read from anywhere else.

    Raises:
        CheckpointError: not plain YAML, no mapping, or a ``_BASE_`` that leads elsewhere.
    """
    path = Path(path)
    return _load_with_bases(path, _root_of(path), [])


def _root_of(path: Path) -> Path:
    """The folder that the bases of ``path`` must lie in."""
    try:
        folder = path.parent.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(path, f"cannot be opened: {error}") from None
    zoo = zoo_root()
    return zoo if zoo is not None and folder.is_relative_to(zoo) else folder


def _load_with_bases(path: Path, root: Path, loaded: list[Path]) -> dict[str, Any]:
    if len(loaded) >= MAX_FILES:
        raise CheckpointError(
            loaded[0], f"its {BASE_KEY} files refer to each other, or are more than {MAX_FILES - 1}"
        )
    loaded.append(path)
    content = _load_plain(path)
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        file = _base_file(path, root, base)
        _merge(_load_with_bases(file, _root_of(file), loaded), merged, path)
    _merge(content, merged, path)
    return merged


def _load_plain(path: Path) -> dict[str, Any]:
    if path.suffix == ".py":
        raise CheckpointError(
            path, "a LazyConfig, which is Python and would have to be executed; give a YAML config"
        )
    with open_regular(path) as stream:
        if file_bytes(stream) > MAX_BYTES:
            raise CheckpointError(path, f"larger than {MAX_BYTES} bytes")
        text = stream.read(MAX_BYTES + 1)
    try:
        content = yaml.load(text.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
        raise CheckpointError(path, f"not a plain YAML config: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, "not a Detectron2 config: no mapping at its top")
    if not _has_at_most(content, MAX_VALUES):
        raise CheckpointError(path, f"its aliases expand to more than {MAX_VALUES} values")
    return content


def _base_file(path: Path, root: Path, base: object) -> Path:
    """The file that a ``_BASE_`` of ``path`` may be read from."""
    if not isinstance(base, str) or not base or "\0" in base:
        raise CheckpointError(path, f"its {BASE_KEY} names no file")
    try:
        # Absolute names stay what they are.
        file = (path.parent / base).resolve()
        if file.is_relative_to(root) and file.is_file():
            return file
    except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links
        pass
    from_zoo = zoo_config_at_end(base)
    if from_zoo is not None:
        return from_zoo
    raise CheckpointError(
        path,
        f"its {BASE_KEY} {base[:100]!r} is neither in its folder nor in the installed model zoo; "
        "give the config that Detectron2 dumps (config.yaml)",
    )


def _merge(upper: dict[str, Any], lower: dict[str, Any], path: Path) -> None:
    """Put the values of ``upper`` over those of ``lower``, in place."""
    for key, value in upper.items():
        if isinstance(value, dict) and key in lower:
            if not isinstance(lower[key], dict):
                raise CheckpointError(
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
