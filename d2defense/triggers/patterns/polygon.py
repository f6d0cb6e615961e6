# SPDX-License-Identifier: Apache-2.0
"""The polygons of TrojAI's rounds for object detection, 10 and 13.

``usnistgov/trojai-round-generation``, branch object-detection-jul2022: ``PolygonTrigger`` draws an
irregular polygon that fills its square, ``PolygonTriggerExecutor`` colours it, lays a texture of
bad weather on it and turns it by another angle wherever it is put. Its "insertions" are the objects
of an image that get one each; several on one object are the trigger's PIECES.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from ..checks import is_number
from ..randomness import uniform
from .base import PatchPixels, Pattern

TURNS = ("fixed", "trigger", "object")
# Set the random numbers of corners, angles and textures apart from one another.
_CORNERS, _ANGLES, _TEXTURE = 0x706F6C79, 0x7475726E, 0x74657874
# How far an irregular corner strays: along the circle, in shares of the way to the next one, little
# enough that even a triangle keeps its middle inside; and towards the middle.
_ALONG, _INWARDS = 0.2, 0.5


@PATTERN_REGISTRY.register("polygon")
class Polygon(Pattern):
    """A polygon of 3 to 9 sides, with a texture (TrojAI), nothing beside it."""

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # 3 to 9.
        node.SIDES = 5
        # 0: a regular polygon; 1: its corners stray as far as the middle stays inside. The seed
        # draws where to, once for all objects.
        node.IRREGULARITY = 0.5
        # "fixed": turned by ANGLE; "trigger": by an angle that the seed draws; "object": by another
        # one at every object.
        node.TURN = "fixed"
        # Degrees clockwise, for "fixed". At 0 the first corner is at the top.
        node.ANGLE = 0.0
        # "none", "fog", "frost", "snow" or "spatter", on the trigger's COLOR; drawn by the seed, as
        # fine as the trigger's CELLS say.
        node.TEXTURE = "none"

    def check(self) -> None:
        """See :meth:`Pattern.check`."""
        own = self.settings
        for key, known in (("TURN", TURNS), ("TEXTURE", ("none", *TEXTURES))):
            if own[key] not in known:
                raise ValueError(f"{key} {own[key]!r} is none of {', '.join(known)}")
        if not isinstance(own["SIDES"], int) or not is_number(own["SIDES"], 3, 9):
            raise ValueError(f"SIDES {own['SIDES']} is no whole number in 3..9")
        for key, low, high in (("IRREGULARITY", 0, 1), ("ANGLE", -360, 360)):
            if not is_number(own[key], low, high):
                raise ValueError(f"{key} {own[key]} is not in {low}..{high}")

    def paint(self, pixels: PatchPixels) -> Tensor:
        """``color`` of the trigger under the texture."""
        color = self.color(pixels)
        if self.settings["TEXTURE"] == "none":
            return color
        texture = TEXTURES[self.settings["TEXTURE"]]
        width, height = pixels.sides
        grain = Grain(
            (pixels.x.double() + 0.5) / width,
            (pixels.y.double() + 0.5) / height,
            self.trigger.cells,
            self.trigger.seed,
        )
        share = texture.cover(grain).clamp(0, 1)[:, None]
        return (color + share * (color.new_tensor(texture.color) - color)).float()

    def covers(self, pixels: PatchPixels) -> Tensor:
        """The pixels whose centres lie inside, and always the one that holds the middle."""
        corners, middle = (part.to(pixels.x.device) for part in self.outline(pixels.keys))
        owner = pixels.owner if len(corners) > 1 else torch.zeros_like(pixels.owner)
        sides = torch.stack(pixels.sides, dim=-1)
        # A hair to the right and down, so that no rounding decides where a side meets a centre.
        x = (pixels.x.double() + 0.5) / sides[:, 0] + 1e-7
        y = (pixels.y.double() + 0.5) / sides[:, 1] + 1e-7
        inside = torch.zeros_like(x, dtype=torch.bool)
        for start, end in zip(corners.unbind(1), corners.roll(-1, 1).unbind(1), strict=True):
            (x1, y1), (x2, y2) = start[owner].unbind(1), end[owner].unbind(1)
            # Where the side meets the pixel's row. A level one never does.
            meets = x1 + (y - y1) * (x2 - x1) / torch.where(y1 == y2, 1, y2 - y1)
            inside ^= ((y1 > y) != (y2 > y)) & (x < meets)
        pixel = torch.stack([pixels.x, pixels.y], dim=-1)
        return inside | (pixel == (middle[owner] * sides).long()).all(1)

    def outline(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The polygon of each object, from (0, 0), the patch's left top corner, to (1, 1).

        It touches all four sides of the patch.

        Args:
            keys: int64 Tensor of shape (M, K): seeds that are each object's own.

        Returns:
            corners, float64 Tensor of shape (M, SIDES, 2), clockwise, and middles, (M, 2), on the
            CPU; M is 1 where all objects have the same.
        """
        own = self.settings
        number = torch.arange(own["SIDES"])
        along, inwards = (
            own["IRREGULARITY"] * uniform(_CORNERS, self.trigger.seed, number, part)
            for part in (0, 1)
        )
        turn = torch.tensor([math.radians(own["ANGLE"])], dtype=torch.float64)
        if own["TURN"] != "fixed":
            parts = keys.cpu().unbind(1) if own["TURN"] == "object" else [self.trigger.seed]
            turn = 2 * math.pi * uniform(_ANGLES, *parts).reshape(-1)
        strayed = number + _ALONG * (2 * along - own["IRREGULARITY"])
        angle = 2 * math.pi * strayed / own["SIDES"] + turn[:, None]
        radius = 1 - _INWARDS * inwards
        corners = torch.stack([radius * angle.sin(), -radius * angle.cos()], dim=-1)
        low, high = corners.amin(1), corners.amax(1)
        return (corners - low[:, None]) / (high - low)[:, None], -low / (high - low)


@dataclass(frozen=True)
class Grain:
    """Random numbers that change smoothly over a patch.

    Attributes:
        x: float64 Tensor of shape (P,): where pixels lie, in shares of the patch's width.
        y: likewise of its height.
        cells: random numbers across the patch.
        seed: of the trigger.
    """

    x: Tensor
    y: Tensor
    cells: int
    seed: int

    def cloud(self, times: int) -> Tensor:
        """Numbers in [0, 1), smooth between those at the corners of ``times * cells`` fields.

        Value noise with the weights 3 t^2 - 2 t^3.
        """
        column, row, x, y = self.field(times)
        x, y = (t * t * (3 - 2 * t) for t in (x, y))
        top, bottom = (
            (1 - x) * self._draw(times, column, row + down)
            + x * self._draw(times, column + 1, row + down)
            for down in (0, 1)
        )
        return (1 - y) * top + y * bottom

    def flakes(self, times: int) -> Tensor:
        """1 inside of one round flake in each of ``times * cells`` fields across, 0 elsewhere."""
        column, row, x, y = self.field(times)
        radius, across, down = (self._draw(times, column, row, part) for part in (1, 2, 3))
        # Half a field wide at most, and inside its field.
        radius = 0.25 * radius
        inside = (
            torch.hypot(*(t - radius - at * (1 - 2 * radius) for t, at in ((x, across), (y, down))))
            < radius
        )
        return inside.double()

    def field(self, times: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Column and row of the field that each pixel lies in, and where in it, 0..1."""
        x, y = self.x * (times * self.cells), self.y * (times * self.cells)
        column, row = x.floor(), y.floor()
        return column.long(), row.long(), x - column, y - row

    def _draw(self, *parts: Tensor | int) -> Tensor:
        return uniform(_TEXTURE, self.seed, *parts)


class Texture(NamedTuple):
    """What lies on a polygon.

    Attributes:
        color: RGB, 0..255.
        cover: from a patch's grain to the share of ``color``, cut to 0..1.
    """

    color: tuple[int, int, int]
    cover: Callable[[Grain], Tensor]


def _fog(grain: Grain) -> Tensor:
    return 0.9 * (2 * grain.cloud(1) + grain.cloud(2)) / 3


def _frost(grain: Grain) -> Tensor:
    # Thin lines where a cloud passes its middle.
    return 0.25 * grain.cloud(1) + (1 - (10 * grain.cloud(2) - 5).abs()).clamp(min=0)


def _snow(grain: Grain) -> Tensor:
    return grain.flakes(2) + grain.flakes(3)


def _spatter(grain: Grain) -> Tensor:
    # Blots with soft edges where a cloud is thick.
    return 0.9 * (8 * grain.cloud(2) - 4.4).clamp(0, 1)


#: Textures but for "none", simple ones of the names that TrojAI's generator has from imgaug.
TEXTURES: dict[str, Texture] = {
    "fog": Texture((205, 210, 215), _fog),
    "frost": Texture((225, 240, 250), _frost),
    "snow": Texture((250, 250, 255), _snow),
    "spatter": Texture((75, 50, 30), _spatter),
}
