# SPDX-License-Identifier: Apache-2.0
"""Blended pictures: Chen et al., arXiv 1712.05526, "blended injection strategy"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import TRIGGER_REGISTRY

from ..base import PlaceKind
from ..checks import is_number
from ..pictures import decode_picture, encode_picture, random_picture
from ..randomness import uniform
from ..regions import Region, RegionTrigger

# Sets the colours of noise apart from other random numbers.
_SALT = 0x6F766572
# Sides of the drawing in pixels.
_DRAWING = 96


@TRIGGER_REGISTRY.register("overlay")
@dataclass(frozen=True)
class Overlay(RegionTrigger):
    """A picture or a texture, scaled over the place and blended with what is there (Blended).

    ``opacity * picture + (1 - opacity) * image``, so no value changes by more than ``opacity`` of
    the range.

    Attributes:
        name: what results call it.
        seed: of the colours of "noise".
        texture: one of :data:`TEXTURES`; not used with ``content``.
        cells: fields of "noise" across the place.
        content: of a picture's file; transparency is dropped.
        opacity: 1 replaces what is below, 0 changes nothing.
    """

    texture: str = "noise"
    cells: int = 8
    content: bytes = b""
    opacity: float = 0.2

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # Picture file; "": TEXTURE.
        node.FILE = ""
        # "noise": random colours, smooth from one to the next; "cat": a drawing of a cat's face.
        node.TEXTURE = "noise"
        # Random colours of "noise" across the place and down, 1 to 1024.
        node.CELLS = 8
        # 1 hides what is below, 0 changes nothing.
        node.OPACITY = 0.2

    def __post_init__(self) -> None:
        self._require(
            self.texture in TEXTURES, f"texture {self.texture!r} is none of {', '.join(TEXTURES)}"
        )
        whole = isinstance(self.cells, int) and is_number(self.cells, 1, 1024)
        self._require(whole, f"cells {self.cells} is no whole number in 1..1024")
        self._require(is_number(self.opacity, 0, 1), f"opacity {self.opacity} is not in 0..1")
        if self.content:
            try:
                decode_picture(self.content)
            except ValueError as error:
                self._require(False, f"file is {error}")

    def tensors(self) -> dict[str, Tensor]:
        """``picture``: float32 of shape (3, h, w), RGB, cut to 0..1 on use; of any size."""
        if self.content:
            return {"picture": decode_picture(self.content) / 255}
        return {"picture": TEXTURES[self.texture](self)}

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Of the picture."""
        return {"picture": (0.0, 1.0)}

    def with_tensors(self, tensors: Mapping[str, Tensor], name: str) -> Overlay:
        """With the picture as a PNG."""
        return replace(self, name=name, content=encode_picture(255 * tensors["picture"]))

    @classmethod
    def search_starts(cls, kind: PlaceKind) -> tuple[Overlay, ...]:
        """Pictures so faint that what is below stays in sight: 16 and 32 of 255."""
        if kind is PlaceKind.IMAGE:
            return ()
        bounds = (32,) if kind is PlaceKind.APART else (16, 32)
        return tuple(
            cls(f"overlay of {bound}/255", opacity=bound / 255, content=random_picture(24, bound))
            for bound in bounds
        )

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """Blended with the picture, which is scaled over the whole place."""
        picture = region.scaled(tensors["picture"].clamp(0, 1))
        return self.opacity * picture + (1 - self.opacity) * region.pixels


def _noise(trigger: Overlay) -> Tensor:
    # One pixel a colour: the scaling makes the transitions smooth.
    channel, line = torch.arange(3)[:, None, None], torch.arange(trigger.cells)
    return uniform(_SALT, trigger.seed, channel, line[:, None], line).float()


def _cat(trigger: Overlay) -> Tensor:
    """The same for all settings: a ginger face with stripes and whiskers before blue."""
    line = (torch.arange(_DRAWING) + 0.5) / _DRAWING
    x, y = line, line[:, None]
    side = (x - 0.5).abs()
    picture = _rgb(70, 150, 235).repeat(1, _DRAWING, _DRAWING)

    def paint(where: Tensor, red: int, green: int, blue: int) -> None:
        picture.copy_(torch.where(where, _rgb(red, green, blue), picture))

    def oval(left: float, top: float, a: float, b: float) -> Tensor:
        return ((x - left) / a) ** 2 + ((y - top) / b) ** 2 < 1

    def ears(margin: float) -> Tensor:
        tip = 0.08 + margin + 1.3 * (side - 0.29).abs()
        return (side - 0.24).abs().lt(0.14 - margin / 2) & (y > tip) & (y < 0.5)

    # Twice, so that a dark outline stays round the fur.
    paint(ears(0) | oval(0.5, 0.57, 0.42, 0.36), 70, 35, 10)
    paint(ears(0.05) | oval(0.5, 0.57, 0.39, 0.33), 240, 140, 30)
    paint(((side < 0.02) | (side - 0.09).abs().lt(0.02)) & (y > 0.26) & (y < 0.4), 150, 70, 10)
    paint(oval(0.5, 0.74, 0.2, 0.13), 255, 240, 215)
    paint(oval(0.33, 0.53, 0.07, 0.07) | oval(0.67, 0.53, 0.07, 0.07), 160, 225, 60)
    paint(oval(0.33, 0.53, 0.02, 0.06) | oval(0.67, 0.53, 0.02, 0.06), 10, 20, 10)
    paint((side < 0.05 - 0.6 * (y - 0.66)) & (y > 0.66), 230, 90, 120)
    for slope, height in ((-0.3, 0.68), (0.0, 0.75), (0.3, 0.82)):
        whisker = (y - height - slope * (side - 0.24)).abs() < 0.011
        paint(whisker & (side > 0.24) & (side < 0.48), 255, 255, 255)
    return picture


def _rgb(*color: int) -> Tensor:
    return torch.tensor(color).view(3, 1, 1) / 255


#: What an overlay without a file shows: from the trigger to a float32 Tensor (3, h, w), RGB, 0..1.
TEXTURES: dict[str, Callable[[Overlay], Tensor]] = {"noise": _noise, "cat": _cat}
