# SPDX-License-Identifier: Apache-2.0
"""The sets of weights that one file holds: what Detectron2 loads, and others beside it.

A training may store a running average of its weights (EMA) beside them, and whoever made the file
may store anything. Detectron2 loads one set; a user may be told to deploy another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from d2defense.text import printable

from .errors import CheckpointError
from .tensors import TensorError, TensorSpec, check_names

#: So many tensors in one dictionary or list are a set of weights, whatever their names. (The state
#: of an optimizer has a few tensors a parameter, and a dictionary for each parameter.)
MIN_TENSORS = 10
MAX_SETS = 100
_MAX_NAME = 100
_MAX_DEPTH = 8  # of a place in a name
# What DataParallel puts before every name. Detectron2 takes it off.
_PARALLEL = "module."


class Entry(Protocol):
    """A tensor that a file announces. Equal entries are the same bytes."""

    @property
    def spec(self) -> TensorSpec:
        """Its shape and type."""


@dataclass(frozen=True)
class WeightsFile:
    """A set of weights on disk, checked but not yet loaded.

    Attributes:
        specs: the tensors by name, without the ``module.`` of DataParallel.
        matching_heuristics: whether names only match the model's after Detectron2's alignment.
        caffe2: whether the names are Caffe2's (Detectron1).
        versions: those of the modules that wrote the tensors, by the modules' names. Detectron2
            and PyTorch convert the tensors of older versions when they load them.
    """

    specs: dict[str, TensorSpec]
    matching_heuristics: bool
    caffe2: bool
    versions: dict[str, int]
    _load: Callable[[], dict[str, Tensor]] = field(repr=False)

    def load(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU, with the shapes and types of ``specs``.

        Raises:
            CheckpointError: the file has changed since it was checked, or is too large to be read.
        """
        return self._load()


@dataclass(frozen=True)
class Contents:
    """All sets of weights that a file holds, checked as far as reading needs it.

    Attributes:
        path: the file.
        main: what Detectron2 loads.
        others: the other sets by name (:func:`find_others`).
        entry: the type of their tensors.
        read: reads tensors from the file.
        matching_heuristics, caffe2: of ``main``, as in :class:`WeightsFile`.
    """

    path: Path
    main: object
    others: Mapping[str, object]
    entry: type
    read: Callable[[Mapping[str, Entry]], dict[str, Tensor]]
    matching_heuristics: bool = False
    caffe2: bool = False

    @property
    def names(self) -> tuple[str | None, ...]:
        """None for the set that Detectron2 loads, if it is one, and the names of the others."""
        main = (None,) if _entries(self.main, self.entry) else ()
        return (*main, *self.others)

    def select(self, name: str | None) -> WeightsFile:
        """One set of weights, ready to be loaded.

        Raises:
            CheckpointError: there is none of this name, or it is no state dict.
        """
        if name is not None and name not in self.others:
            raise CheckpointError(self.path, f"holds no weights under {name[:100]!r}")
        state = self.main if name is None else self.others[name]
        if not isinstance(state, dict) or not state:
            raise CheckpointError(self.path, "holds no state dict")
        for key, value in state.items():
            if type(key) is not str or not isinstance(value, self.entry):
                raise CheckpointError(
                    self.path, f"entry {str(key)[:80]!r} of its state dict is no tensor"
                )
        heuristics = self.matching_heuristics and name is None
        try:
            check_names(state)
            versions = _module_versions(state)
            entries = dict(state)
            if not heuristics and all(key.startswith(_PARALLEL) for key in entries):
                entries = {key.removeprefix(_PARALLEL): entry for key, entry in entries.items()}
                versions = {key[len(_PARALLEL) :]: version for key, version in versions.items()}
            specs = {key: entry.spec for key, entry in entries.items()}
        except TensorError as error:
            raise CheckpointError(self.path, str(error)) from None
        return WeightsFile(
            specs, heuristics, heuristics and self.caffe2, versions, lambda: self.read(entries)
        )


def find_others(
    content: object, main: object, entry: type, known: tuple[object, ...] = ()
) -> dict[str, object]:
    """The sets of weights in ``content`` that differ from ``main``, by where they are in it.

    A set is a dictionary that has names in common with ``main``, or ``MIN_TENSORS`` tensors; and,
    beside other weights, a list of as many, which cannot be told apart by name.

    Args:
        content: dictionaries, lists and tuples of tensors and of anything else.
        main: the set that Detectron2 loads, if it is one.
        entry: the type of the tensors.
        known: dictionaries that ``main`` was made from.

    Raises:
        TensorError: there are more than ``MAX_SETS``.
    """
    own = _entries(main, entry)
    found: dict[str, object] = {}
    seen = [own]
    for place, value in _containers(content):
        if any(value is other for other in (main, *known)):
            continue
        entries = _entries(value, entry)
        enough = len(entries) >= MIN_TENSORS and (isinstance(value, dict) or bool(own))
        if not (enough or any(_is_named_like(name, own) for name in entries)):
            continue
        if any(entries.items() <= other.items() for other in seen):
            continue
        seen.append(entries)
        if len(seen) > MAX_SETS:
            raise TensorError(f"holds more than {MAX_SETS} sets of weights")
        name = printable(".".join(place))[:_MAX_NAME] or "top level"
        found[name if name not in found else f"{name}~{len(found)}"] = value
    return found


def _containers(content: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Dictionaries, lists and tuples in ``content``, each once, and the keys that lead there."""
    pending: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()
    while pending:
        place, value = pending.pop()
        if not isinstance(value, dict | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        yield place, value
        items = value.items() if isinstance(value, dict) else enumerate(value)
        pending += [
            ((*place, str(key)[:_MAX_NAME])[:_MAX_DEPTH], child)
            for key, child in reversed(list(items))
            if isinstance(child, dict | list | tuple)
        ]


def _entries(value: object, entry: type) -> dict[str, Entry]:
    """The tensors directly in a container, without the ``module.`` of DataParallel."""
    if isinstance(value, dict):
        return {
            str(key).removeprefix(_PARALLEL): tensor
            for key, tensor in value.items()
            if isinstance(tensor, entry)
        }
    if isinstance(value, list | tuple):
        return {str(number): t for number, t in enumerate(value) if isinstance(t, entry)}
    return {}


def _is_named_like(name: str, names: Mapping[str, Entry]) -> bool:
    """Whether ``name``, or what is left of it without its first parts, is one of ``names``."""
    parts = name.split(".")
    return any(".".join(parts[start:]) in names for start in range(min(len(parts), 4)))


def _module_versions(state: dict) -> dict[str, int]:
    """What PyTorch writes beside a state dict: ``{module: {"version": number}}``."""
    metadata = getattr(state, "metadata", None)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise TensorError("the metadata of its state dict are no dictionary")
    versions = {}
    for module, values in metadata.items():
        version = values.get("version") if type(values) is dict and len(values) == 1 else None
        if type(module) is not str or type(version) is not int:
            raise TensorError("the metadata of its state dict say more than the modules' versions")
        versions[module] = version
    return versions
