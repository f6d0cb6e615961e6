# SPDX-License-Identifier: Apache-2.0
"""Which class of the detector an object's class in the dataset is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import MetadataCatalog

UNKNOWN = -1
_MAX_BYTES = 1 << 20


class ClassMapError(ValueError):
    """A class map cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class ClassMap:
    """How the classes of a dataset correspond to those of the detectors.

    Attributes:
        source: the file, for messages.
        entries: (name in the dataset, index or name in the detector) pairs.
        model_classes: names of the detector's classes in order; empty if they have none.
    """

    source: str
    entries: tuple[tuple[str, int | str], ...]
    model_classes: tuple[str, ...] = ()

    def indices(self, dataset_classes: Sequence[str], num_classes: int) -> list[int]:
        """Index in the detector of each of the dataset's classes; :data:`UNKNOWN` if unlisted.

        Args:
            dataset_classes: names in the order of their indices.
            num_classes: of the detector.

        Raises:
            ClassMapError: a name that the dataset does not have, or an index or name that the
                detector does not have.
        """
        if self.model_classes and len(self.model_classes) != num_classes:
            raise ClassMapError(
                f"{self.source}: names {len(self.model_classes)} classes of the detector, "
                f"which has {num_classes}"
            )
        indices = [UNKNOWN] * len(dataset_classes)
        for name, target in self.entries:
            if name not in dataset_classes:
                raise ClassMapError(
                    f"{self.source}: the dataset has no class {name!r}; it has "
                    f"{', '.join(dataset_classes) or 'no names'}"
                )
            index = target if isinstance(target, int) else self.model_classes.index(target)
            if not 0 <= index < num_classes:
                raise ClassMapError(
                    f"{self.source}: {name}: the detector has no class {index}, "
                    f"only 0 to {num_classes - 1}"
                )
            indices[dataset_classes.index(name)] = index
        return indices


def class_indices(
    dataset_classes: Sequence[str], num_classes: int, class_map: ClassMap | None = None
) -> list[int]:
    """Index in the detector of each of the dataset's classes; :data:`UNKNOWN` where none is known.

    Without a map the classes are taken to be the same, in the same order, where there are as many
    of them; otherwise none corresponds.

    Raises:
        ClassMapError: see :meth:`ClassMap.indices`.
    """
    if class_map is not None:
        return class_map.indices(dataset_classes, num_classes)
    if len(dataset_classes) == num_classes:
        return list(range(num_classes))
    return [UNKNOWN] * len(dataset_classes)


def load_class_map(path: str | Path) -> ClassMap:
    """Read a class map: YAML or JSON, as docs/scanning.md describes it.

    Either a mapping of the dataset's class names to indices of the detector's, or that mapping
    under ``classes`` beside ``model_classes``, a list of the detector's class names (or the name
    of a registered dataset that has them), by which it may then name them.

    Raises:
        ClassMapError: the file cannot be read or does not say what it must.
    """
    try:
        content = Path(path).read_bytes()
        if len(content) > _MAX_BYTES:
            raise ClassMapError(f"{path}: larger than {_MAX_BYTES} bytes")
        document = yaml.safe_load(content)
    except OSError as error:
        raise ClassMapError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ClassMapError(f"{path}: neither YAML nor JSON: {reason}") from None
    if not isinstance(document, dict) or not document:
        raise ClassMapError(f"{path}: not a mapping of class names")
    classes, names = document, None
    if isinstance(document.get("classes"), dict):
        unknown = set(document) - {"classes", "model_classes"}
        if unknown:
            raise ClassMapError(f"{path}: unknown key {', '.join(map(str, unknown))}")
        classes, names = document["classes"], document.get("model_classes")
    known = _names(path, names)
    entries = []
    for name, target in classes.items():
        if isinstance(target, bool) or not isinstance(target, int | str):
            raise ClassMapError(f"{path}: {name}: {target!r} is neither an index nor a name")
        if isinstance(target, str) and target not in known:
            raise ClassMapError(
                f"{path}: {name}: {target!r} is not among 'model_classes'; give them, or an index"
            )
        entries.append((str(name), target))
    return ClassMap(str(path), tuple(entries), known)


def _names(path: str | Path, names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    if isinstance(names, str):
        registered = names in MetadataCatalog.list()
        found = MetadataCatalog.get(names).get("thing_classes", ()) if registered else ()
        if not found:
            raise ClassMapError(f"{path}: model_classes: no registered dataset {names!r} has names")
        return tuple(found)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ClassMapError(f"{path}: 'model_classes' is neither a list of names nor a dataset")
    return tuple(names)
