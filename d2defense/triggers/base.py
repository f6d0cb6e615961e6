# SPDX-License-Identifier: Apache-2.0
"""What a trigger is: a pattern or transformation that an attacker puts on images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum, auto
from pathlib import Path
from typing import Any, Self

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.files import open_readable
from d2defense.registry import TRIGGER_REGISTRY

# Far more than any trigger needs, and little enough to read.
_LARGEST_FILE = 64 << 20
_JSON_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    tuple: "array",
}


class PlaceKind(Enum):
    """What lies where a trigger goes, which says how much of it a search may cover."""

    BEARER = auto()
    """What the trigger is to change, such as an object: some of it stays in sight."""
    APART = auto()
    """What it is to change lies elsewhere: the place may be covered as a whole."""
    IMAGE = auto()
    """All of the image."""


@dataclass(frozen=True)
class Trigger:
    """A trigger of one family, by the name that ``ATTACK.TRIGGER.FAMILY`` gives.

    A family is a frozen dataclass of plain values, registered in ``TRIGGER_REGISTRY``. The same
    object poisons, measures, scans, screens and repairs.

    Attributes:
        name: what results call it.
        seed: of its random choices; the same (seed, image's seed, place) gives the same pixels,
            on every device and in whatever batch.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    name: str
    seed: int = 0

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the family's own keys with their defaults into ``ATTACK.TRIGGER.<FAMILY>``.

        ``node`` is that node, empty as yet. Each key, in small letters, is a field of the class,
        but that a key "FILE" is the path whose content is the field ``content``.
        """

    def apply(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        places: Sequence[Tensor],
        seeds: Sequence[int],
        image_format: str = "BGR",
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The images with the trigger at every place; those given stay as they are.

        Where places overlap, the trigger of the later one lies on top. Whole-number images are
        rounded (halves to the even neighbour) and cut to 0..255; floating ones keep what comes out,
        and gradients flow to the images and to ``tensors`` where the family is differentiable.

        Args:
            images: uint8 or float Tensor of shape (G, 3, H, W), values 0..255; smaller images lie
                in the top left corner.
            image_sizes: G pairs (height, width), the part of each that is its image.
            places: G Tensors of shape (M_g, 4), XYXY in pixels: boxes of objects, windows of the
                background, or the whole image.
            seeds: G whole numbers that set the random choices of one image apart from the others'.
            image_format: order of the channels, "BGR" or "RGB" (``INPUT.FORMAT``).
            tensors: take the place of those of :meth:`tensors` that they name.

        Returns:
            Tensor of the shape, type and device of ``images``.

        Raises:
            ValueError: the images have no three colour channels in a known order.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What of the trigger a search may optimise, by name, float; none by default."""
        return {}

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and most value of each of :meth:`tensors`, by name: the trigger's budget."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor], name: str) -> Self:
        """The trigger of this budget whose :meth:`tensors` are those given, as near as files go.

        Args:
            tensors: all of :meth:`tensors`, of any size that they may have.
            name: of the new trigger.

        Raises:
            NotImplementedError: the family has none, or cannot be told what they are.
        """
        raise NotImplementedError(f"{self.family}: its tensors cannot be stored")

    @classmethod
    def search_starts(cls, kind: PlaceKind) -> tuple[Self, ...]:
        """From which triggers of the family a search for an unknown trigger starts.

        One for each budget, the smallest first; :meth:`tensors` of each are optimised. None by
        default: the family is not searched.

        Args:
            kind: of the places where the trigger is going to be.
        """
        return ()

    def varied(self, rng: np.random.Generator) -> Self:
        """A trigger much like this one, as an attacker's may be to that of a bank.

        The same one by default.

        Args:
            rng: of every choice.
        """
        return self

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Self | None:
        """A trigger of the family at random, about as strong as attackers have it.

        A repair shows such triggers with true labels, beside patches and what it searches for.
        None by default: the family is not drawn.

        Args:
            rng: of every choice.
        """
        return None

    @classmethod
    def from_settings(
        cls, name: str, seed: int, settings: Mapping[str, Any], folder: Path | None = None
    ) -> Self:
        """The trigger of values by the names of its fields.

        Args:
            name: see the class.
            seed: see the class.
            settings: values of some fields; lists become tuples, and whole numbers floating ones
                where the field's default is one. ``file``, a path, gives the bytes of ``content``;
                "" gives none.
            folder: that relative paths start from; the working directory if None.

        Raises:
            ValueError: a value that cannot be used, or a file that cannot be read.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        values = {key: hashable(value, defaults.get(key)) for key, value in settings.items()}
        if "file" in values:
            values["content"] = read_content(name, values.pop("file"), folder)
        return cls(name=name, seed=seed, **values)

    @classmethod
    def from_node(cls, node: CfgNode, name: str, seed: int) -> Self:
        """The trigger that ``ATTACK.TRIGGER.<FAMILY>`` describes.

        Raises:
            ValueError: a value that cannot be used, or a file that cannot be read.
        """
        return cls.from_settings(name, seed, {key.lower(): value for key, value in node.items()})

    @classmethod
    def entry_properties(cls) -> dict[str, Any]:
        """JSON schemas of the family's own keys in an entry of a trigger bank, by key.

        Those of :meth:`add_config` in small letters, each of its default's type.
        """
        node = CfgNode()
        cls.add_config(node)
        return {key.lower(): schema_of(default) for key, default in node.items()}

    @classmethod
    def entry_rules(cls) -> list[dict[str, Any]]:
        """Further JSON schemas that an entry of the family must fulfil."""
        return []

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], folder: Path) -> Self:
        """The trigger of a bank's entry, of the keys of :meth:`entry_properties`, name and seed.

        Raises:
            ValueError: a value that cannot be used, or a file that cannot be read.
        """
        values = {key: value for key, value in entry.items() if key not in ("name", "seed")}
        return cls.from_settings(entry["name"], int(entry.get("seed", 0)), values, folder)

    def to_entry(self, file: str) -> tuple[dict[str, Any], bytes]:
        """The trigger as an entry of a bank, and the content of the file that it names.

        Args:
            file: name of that file; the entry has none where there is no content.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        content = values.pop("content", b"")
        entry = {"name": values.pop("name"), "family": self.family}
        entry |= {key: _plain(value) for key, value in values.items()}
        return entry | ({"file": file} if content else {}), content

    @property
    def family(self) -> str:
        """The name under which the class is registered."""
        return TRIGGER_REGISTRY.name_of(type(self))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the name, 64 hexadecimal digits."""
        content = json.dumps(self._content(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        """The family and all fields but the name, as JSON takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["name"]
        return {"family": self.family} | {
            key: hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
            for key, value in values.items()
        }

    def _require(self, holds: bool, what: str) -> None:
        """Raise a ValueError that names the trigger and says ``what`` unless ``holds``."""
        if not holds:
            raise ValueError(f"trigger {self.name}: {what}")


def build_trigger(cfg: CfgNode) -> Trigger:
    """The trigger that ``ATTACK.TRIGGER`` and ``ATTACK.SEED`` describe.

    Raises:
        ValueError: no such family, a value outside its range, or a file that cannot be read.
    """
    node = cfg.ATTACK.TRIGGER
    family = TRIGGER_REGISTRY.get(node.FAMILY)
    return family.from_node(node.get(node.FAMILY.upper(), CfgNode()), node.FAMILY, cfg.ATTACK.SEED)


def _plain(value: Any) -> Any:
    """The value as YAML has it."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def schema_of(default: Any) -> dict[str, Any]:
    """JSON schema of a value of a default's type."""
    return {"type": _JSON_TYPES[type(default)]} if type(default) in _JSON_TYPES else {}


def read_content(name: str, file: str, folder: Path | None = None) -> bytes:
    """The bytes of a trigger's file, none for "".

    Raises:
        ValueError: it cannot be read or has more than 64 MiB; the message names the trigger.
    """
    if not file:
        return b""
    path = (folder or Path()) / file
    try:
        with open_readable(path) as stream:
            content = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"trigger {name}: {path}: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"trigger {name}: {path}: larger than {_LARGEST_FILE >> 20} MiB")
    return content


def hashable(value: Any, like: Any = None) -> Any:
    """The value with lists as tuples, and whole numbers as floats where ``like`` has floats."""
    if isinstance(value, (list, tuple)):
        first = like[0] if isinstance(like, tuple) and like else None
        return tuple(hashable(item, first) for item in value)
    # JSON writes 1 for 1.0; both are the same trigger. What no float holds is left to the checks.
    exact = type(value) is int and abs(value) <= 2**53
    return float(value) if isinstance(like, float) and exact else value
