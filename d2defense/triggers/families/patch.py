# SPDX-License-Identifier: Apache-2.0
"""Patches: the kind of BadNets (arXiv 1708.06733), on detectors BadDet (arXiv 2205.14497)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY, TRIGGER_REGISTRY

from ..base import PlaceKind, hashable, read_content
from ..patch_spec import PatchSpec
from ..patch_stamping import stamp_batch_
from ..pictures import random_picture

# Random colours across the picture that a search starts from.
_SEARCHED_CELLS = 5
# Names of places in a bank, as placement and position of a patch.
_PLACES: dict[str, tuple[str, tuple[float, float]]] = {
    "center": ("center", (0.5, 0.5)),
    "top_left": ("inside", (0.0, 0.0)),
    "top_right": ("inside", (1.0, 0.0)),
    "bottom_left": ("inside", (0.0, 1.0)),
    "bottom_right": ("inside", (1.0, 1.0)),
    "random": ("random", (0.5, 0.5)),
    "background": ("background", (0.5, 0.5)),
}
# Logarithms of the least and the largest factor by which a patch like another one is larger.
_VARIED = (-0.5, 0.7)
# What a bank's schema allows in several ways, in a patch's one way.
_TYPES: dict[str, Callable[[Any], Any]] = {
    "cells": int,
    "seed": int,
    "color": lambda rgb: tuple(map(int, rgb)),
    "second_color": lambda rgb: tuple(map(int, rgb)),
    "opacity": float,
    "pieces": lambda pieces: hashable(pieces, ((0.0,),)),
    "size": lambda size: tuple(map(float, size if isinstance(size, list) else [size, size])),
}


@TRIGGER_REGISTRY.register("patch")
@dataclass(frozen=True)
class Patch(PatchSpec):
    """A rectangle or other shape that is painted with a pattern, on a part of its place."""

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See :class:`~d2defense.triggers.patch_spec.PatchSpec`."""
        # What is painted on it, by its name in PATTERN_REGISTRY.
        node.PATTERN = "solid"
        # Red, green, blue, 0 to 255; not used by the random patterns and pictures.
        node.COLOR = [255, 255, 255]
        # The other colour of patterns that have two.
        node.SECOND_COLOR = [0, 0, 0]
        # Fields or stripes across the patch; half waves of a sinusoid; a cross's strokes are one
        # cell thick.
        node.CELLS = 4
        # Picture file of the pattern "image".
        node.IMAGE = ""
        # Width and height of the patch, above 0. It is at least one pixel wide and high.
        node.SIZE = [0.1, 0.1]
        # "box": shares of the place's width and height, at most 1; "pixels": pixels of the image
        # as read.
        node.SIZE_UNIT = "box"
        # "center": the patch's centre lies at POSITION of the place; "inside": at POSITION of the
        # room that the patch has inside it, [0, 0] its left top corner; "random": anywhere inside
        # it; "background": anywhere on the image outside of all places.
        node.PLACEMENT = "center"
        # x and y as shares, 0 to 1; used by "center" and "inside".
        node.POSITION = [0.5, 0.5]
        # 1 hides what is below the patch, 0 changes nothing.
        node.OPACITY = 1.0
        # Parts of the patch, such as stickers: each bears the whole pattern, later ones lie on top,
        # nothing is between them. [x, y, width, height] in shares of the patch; or [width, height],
        # anywhere inside it, drawn by the seed for each object. []: all of the patch.
        node.PIECES = []
        # Settings that a pattern brings, below its name.
        node.SETTINGS = CfgNode()

    def apply(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        places: Sequence[Tensor],
        seeds: Sequence[int],
        image_format: str = "BGR",
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As :meth:`~d2defense.triggers.Trigger.apply`, all patches at once on the device."""
        return stamp_batch_(self, images.clone(), image_sizes, places, seeds, image_format, tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the pattern."""
        return PATTERN_REGISTRY.get(self.pattern)(self).tensors()

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Shares of full colour."""
        return dict.fromkeys(self.tensors(), (0.0, 1.0))

    def with_tensors(self, tensors: Mapping[str, Tensor], name: str) -> Patch:
        """With the pattern's as its fields."""
        stored = PATTERN_REGISTRY.get(self.pattern)(self).stored(tensors)
        return replace(self, name=name, **stored)

    def varied(self, rng: np.random.Generator) -> Patch:
        """Smaller or larger, by up to about two, and half of the time anywhere inside its place."""
        width, height = (
            min(1.0, share * factor) if self.size_unit == "box" else share * factor
            for share, factor in zip(self.size, np.exp(rng.uniform(*_VARIED, size=2)), strict=True)
        )
        elsewhere = {}
        if rng.random() < 0.5:
            elsewhere = {"placement": "inside", "position": tuple(rng.uniform(size=2).tolist())}
        return replace(self, size=(float(width), float(height)), **elsewhere)

    @classmethod
    def search_starts(cls, kind: PlaceKind) -> tuple[Patch, ...]:
        """Pictures in the middle of 10, 20 and 40 % of the sides; on images nine in a grid."""
        if kind is not PlaceKind.IMAGE:
            budgets = (40, 100) if kind is PlaceKind.APART else (10, 20, 40)
            return tuple(
                cls(
                    f"patch of {percent} %",
                    pattern="image",
                    image=random_picture(_SEARCHED_CELLS, percent),
                    size=(percent / 100, percent / 100),
                )
                for percent in budgets
            )
        starts = [share / 100 for share in (2, 44, 86)]
        grid = cls(
            "nine patches of 12 %",
            pattern="image",
            image=random_picture(_SEARCHED_CELLS, 9),
            size=(1.0, 1.0),
            pieces=tuple((x, y, 0.12, 0.12) for y in starts for x in starts),
        )
        return (grid,)

    @classmethod
    def from_node(cls, node: CfgNode, name: str, seed: int) -> Self:
        """As :meth:`~d2defense.triggers.Trigger.from_node`, with the pattern's own settings."""
        settings = node.SETTINGS.get(node.PATTERN.upper(), {})
        try:
            image = read_content(name, node.IMAGE)
        except ValueError as error:
            raise ValueError(f"ATTACK.TRIGGER.PATCH.IMAGE: {error}") from None
        return cls(
            name=name,
            seed=seed,
            pattern=node.PATTERN,
            color=tuple(node.COLOR),
            size=tuple(node.SIZE),
            position=tuple(node.POSITION),
            opacity=node.OPACITY,
            second_color=tuple(node.SECOND_COLOR),
            cells=node.CELLS,
            image=image,
            size_unit=node.SIZE_UNIT,
            placement=node.PLACEMENT,
            pieces=_TYPES["pieces"](node.PIECES),
            settings=tuple(sorted(settings.items())),
        )

    def to_entry(self, file: str) -> tuple[dict[str, Any], bytes]:
        """As :meth:`~d2defense.triggers.Trigger.to_entry`, with the keys of a patch."""
        entry, _ = super().to_entry(file)
        del entry["image"]
        placement, position = entry.pop("placement"), entry.pop("position")
        names = {place: name for name, place in _PLACES.items()}
        entry["position"] = names.get((placement, tuple(position)), position)
        settings = dict(entry.pop("settings"))
        if settings:
            entry["settings"] = settings
        return entry | ({"image": file} if self.image else {}), self.image

    @classmethod
    def entry_properties(cls) -> dict[str, Any]:
        """Those of ``assets/triggers/patch.schema.json``."""
        file = resources.files("d2defense") / "assets" / "triggers" / "patch.schema.json"
        return json.loads(file.read_text(encoding="utf-8"))

    @classmethod
    def entry_rules(cls) -> list[dict[str, Any]]:
        """What a pattern asks of an entry's ``settings``."""
        return [
            {"if": _has(name), "then": {"properties": {"settings": pattern.settings_schema()}}}
            for name, pattern in PATTERN_REGISTRY
        ]

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], folder: Path) -> Self:
        """As :meth:`~d2defense.triggers.Trigger.from_entry`; a picture needs no pattern's name."""
        values = {"pattern": "image" if "image" in entry else cls.pattern} | dict(entry)
        arguments = {
            key: _TYPES[key](value) if key in _TYPES else value for key, value in values.items()
        }
        if "position" in values:
            arguments |= _place(values["name"], values["position"])
        if "image" in values:
            arguments["image"] = read_content(values["name"], values["image"], folder)
        if values["pattern"] in PATTERN_REGISTRY:
            # All of them, as a patch of a configuration has them.
            defaults = PATTERN_REGISTRY.get(values["pattern"]).default_settings()
            settings = defaults | values.get("settings", {})
            arguments["settings"] = tuple(
                (key, hashable(settings[key], defaults.get(key))) for key in sorted(settings)
            )
        return cls(**arguments)

    def _content(self) -> dict[str, Any]:
        # As before there were families, settings and pieces: calibrations know patches by
        # fingerprint.
        content = super()._content()
        del content["family"]
        for key in ("pieces", "settings"):
            if not content[key]:
                del content[key]
        return content


def _has(pattern: str) -> dict[str, Any]:
    """JSON schema of an entry with a pattern, be it named or not."""
    named = {"properties": {"pattern": {"const": pattern}}, "required": ["pattern"]}
    unnamed: dict[str, Any] = {"not": {"required": ["pattern"]}}
    if pattern == "image":
        return {"anyOf": [named, unnamed | {"required": ["image"]}]}
    if pattern == PatchSpec.pattern:
        return {"anyOf": [named, {"allOf": [unnamed, {"not": {"required": ["image"]}}]}]}
    return named


def _place(name: str, position: str | list[float]) -> dict[str, Any]:
    if isinstance(position, list):
        return {"placement": "center", "position": tuple(map(float, position))}
    if position not in _PLACES:
        raise ValueError(f"trigger {name}: position {position!r} is none of {', '.join(_PLACES)}")
    placement, point = _PLACES[position]
    return {"placement": placement, "position": point}
