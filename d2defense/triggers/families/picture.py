# SPDX-License-Identifier: Apache-2.0
"""Natural objects as triggers: Dangerous Cloaking (arXiv 2201.08619) and MACAB (arXiv 2209.02339).

Both photograph people who wear a T-shirt that shops sell; others have hats, fruit, a basketball.
Here the object is put into the image, as large as it would be beside the victim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn.functional import grid_sample

from d2defense.registry import TRIGGER_REGISTRY

from ..checks import is_number
from ..pictures import decode_picture, scale_picture
from ..randomness import uniform
from ..regions import Rectangle, Region, RegionTrigger

WHERE = ("on", "beside", "over")
# Sets the random numbers of this family apart from others.
_SALT = 0x70696374
# What JITTER = 1 means: how much larger or smaller, brighter or darker, and how many degrees.
_RESIZED, _LIT, _TURNED = 0.5, 0.5, 45.0
# Of the size of a place; so that no number grows beyond what images have.
_LARGEST = 4.0


class Look(NamedTuple):
    """How the object looks at one place.

    Attributes:
        width: in pixels, before it is turned.
        height: likewise.
        angle: that it is turned by, clockwise, in radians.
        brightness: factor of its colours.
        side: in [0, 1): it lies on the left below 0.5, if there is a choice.
    """

    width: int
    height: int
    angle: float
    brightness: float
    side: float

    @property
    def extent(self) -> tuple[int, int]:
        """Width and height of the upright rectangle that holds the turned object."""
        cos, sin = abs(math.cos(self.angle)), abs(math.sin(self.angle))
        across, down = self.width * cos + self.height * sin, self.width * sin + self.height * cos
        # Not a pixel more for what rounding adds.
        return math.ceil(across - 1e-9), math.ceil(down - 1e-9)


@TRIGGER_REGISTRY.register("picture")
@dataclass(frozen=True)
class NaturalPicture(RegionTrigger):
    """A natural object with alpha, on, beside or over what is there (Dangerous Cloaking, MACAB).

    Attributes:
        name: what results call it.
        seed: of the variation from place to place, and of the side for "beside".
        picture: one of :func:`shipped_pictures`; not used with ``content``.
        content: of a picture's file; what it has of transparency counts.
        size: height of the object in heights of the place; its aspect is kept.
        where: one of :data:`WHERE`.
        position: (x, y) in shares of the room that the object has inside the place, for "on".
        opacity: 1 hides what is below, 0 changes nothing.
        jitter: how much size, angle and brightness vary from place to place.
    """

    picture: str = "shirt"
    content: bytes = b""
    size: float = 0.4
    where: str = "on"
    position: tuple[float, float] = (0.5, 0.5)
    opacity: float = 1.0
    jitter: float = 0.2

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # "basketball", "cup" or "shirt", drawings that come with d2defense.
        node.PICTURE = "shirt"
        # A picture file of one's own with a transparent background, such as PNG; "": PICTURE.
        node.FILE = ""
        # Height of the object in heights of the place, above 0, at most 4. Its aspect is kept.
        node.SIZE = 0.4
        # "on": inside the place, and made smaller if it does not fit; "beside": to its left or
        # right, whichever the seed draws of those that have room on the image, at its foot; "over":
        # on top of its upper edge, like a hat. "beside" and "over" are moved as far into the image
        # as they fit.
        node.WHERE = "on"
        # x and y for "on", as shares of the room inside the place, 0 to 1: [0, 0] is its left top
        # corner, [0.5, 0.5] its middle.
        node.POSITION = [0.5, 0.5]
        # 1 hides what is below the object, 0 changes nothing.
        node.OPACITY = 1.0
        # Variation from place to place, 0 to 1, drawn by the seed: at 1, the size is up to half
        # more or less, the object is turned by up to 45 degrees either way, and its colours are up
        # to half brighter or darker. 0: exact.
        node.JITTER = 0.2

    def __post_init__(self) -> None:
        known = shipped_pictures()
        self._require(
            self.picture in known, f"picture {self.picture!r} is none of {', '.join(known)}"
        )
        self._require(
            is_number(self.size, 0, _LARGEST) and self.size > 0,
            f"size {self.size} is not in (0, {_LARGEST:g}]",
        )
        self._require(self.where in WHERE, f"where {self.where!r} is none of {', '.join(WHERE)}")
        pair = isinstance(self.position, tuple) and len(self.position) == 2
        self._require(
            pair and all(is_number(share, 0, 1) for share in self.position),
            f"position {self.position} is not two shares in 0..1",
        )
        for key in ("opacity", "jitter"):
            value = getattr(self, key)
            self._require(is_number(value, 0, 1), f"{key} {value} is not in 0..1")
        if self.content:
            try:
                alpha = decode_picture(self.content, "RGBA")[3]
            except ValueError as error:
                self._require(False, f"file is {error}")
            self._require(bool(alpha.any()), "file is transparent all over")

    def tensors(self) -> dict[str, Tensor]:
        """``picture``: float32 of shape (4, h, w), RGBA, cut to 0..1 on use; of any size.

        Its own sides say the aspect.
        """
        content = self.content or shipped_pictures()[self.picture]
        return {"picture": decode_picture(content, "RGBA") / 255}

    def area(
        self,
        place: Rectangle,
        image_size: tuple[int, int],
        key: Tensor,
        tensors: Mapping[str, Tensor],
    ) -> Rectangle:
        """The upright rectangle that holds the object."""
        look = self.look(place, key, tensors["picture"])
        (width, height), (left, top, right, bottom) = look.extent, place
        if self.where == "on":
            # No more than the place: in one of a pixel, a turned object of a pixel still reaches
            # beyond it.
            width, height = min(width, right - left), min(height, bottom - top)
            x = left + round(self.position[0] * (right - left - width))
            y = top + round(self.position[1] * (bottom - top - height))
            return x, y, x + width, y + height
        if self.where == "over":
            x, y = left + round((right - left - width) / 2), top - height
        else:
            on_left, on_right = left - width, image_size[1] - width - right
            # What is missing on either side, if anything.
            missing = min(on_left, 0), min(on_right, 0)
            is_left = look.side < 0.5 if missing[0] == missing[1] else missing[0] > missing[1]
            x, y = left - width if is_left else right, bottom - height
        x, y = (
            max(0, min(start, most))
            for start, most in ((x, image_size[1] - width), (y, image_size[0] - height))
        )
        return x, y, x + width, y + height

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The object over what is there, at its own alpha times the opacity."""
        picture = tensors["picture"].clamp(0, 1)
        look = self.look(region.place, region.key, picture)
        alpha = picture[3:]
        # Colours weighted by alpha, so that those of transparent pixels count for nothing.
        placed = _place(torch.cat([picture[:3] * alpha, alpha]), look, region)
        cover = placed[3:]
        color = torch.minimum(placed[:3] * look.brightness, cover)
        return self.opacity * color + (1 - self.opacity * cover) * region.pixels

    def look(self, place: Rectangle, key: Tensor, picture: Tensor) -> Look:
        """How the object looks at a place.

        Args:
            place: XYXY in whole pixels.
            key: int64 Tensor of shape (K,): see :class:`~d2defense.triggers.regions.Region`.
            picture: Tensor of shape (4, h, w), of which the sides count.
        """
        numbers = torch.arange(4, device=key.device)
        size, angle, light, side = uniform(_SALT, *key.unbind(), numbers).tolist()
        size, angle, light = (self.jitter * (2 * number - 1) for number in (size, angle, light))
        room = place[2] - place[0], place[3] - place[1]
        height = self.size * (1 + _RESIZED * size) * room[1]
        width = height * picture.shape[-1] / picture.shape[-2]
        look = Look(
            *(max(1, round(length)) for length in (width, height)),
            angle=math.radians(_TURNED * angle),
            brightness=1 + _LIT * light,
            side=side,
        )
        if self.where != "on" or all(a <= b for a, b in zip(look.extent, room, strict=True)):
            return look
        cos, sin = abs(math.cos(look.angle)), abs(math.sin(look.angle))
        reach = width * cos + height * sin, width * sin + height * cos
        share = min(1.0, *(b / a for a, b in zip(reach, room, strict=True)))
        fitting = (max(1, math.floor(length * share)) for length in (width, height))
        return Look(*fitting, *look[2:])


@functools.cache
def shipped_pictures() -> Mapping[str, bytes]:
    """Contents of the pictures that come with d2defense, by name; not to be written to.

    ``tools/draw_trigger_pictures.py`` draws them.
    """
    files = (resources.files("d2defense") / "assets" / "triggers").iterdir()
    pictures = {file.name: file for file in files if file.name.endswith(".png")}
    return {name.removesuffix(".png"): pictures[name].read_bytes() for name in sorted(pictures)}


def _place(layers: Tensor, look: Look, region: Region) -> Tensor:
    """Layers scaled to a look, turned about the middle of a region's whole area, and cut to it.

    Args:
        layers: Tensor of shape (C, H, W).
        look: size and angle.
        region: see :class:`~d2defense.triggers.regions.Region`.

    Returns:
        Tensor of shape (C, h, w), linear between pixels, 0 beside the layers.
    """
    size = look.width, look.height
    if not look.angle:
        return region.scaled(layers)
    rows, columns = region.pixels.shape[-2:]
    middle = [side / 2 for side in region.size]
    # In float64, and on the CPU, so that large areas are as exact, and devices agree.
    line = torch.arange(max(rows, columns), dtype=torch.float64) + 0.5
    x = line[:columns] + region.offset[0] - middle[0]
    y = (line[:rows] + region.offset[1] - middle[1])[:, None]
    cos, sin = math.cos(look.angle), math.sin(look.angle)
    points = x * cos + y * sin + size[0] / 2, y * cos - x * sin + size[1] / 2
    # Only what the points reach of the scaled layers is made.
    first = [max(0, math.floor(float(p.min())) - 2) for p in points]
    end = [min(s, math.ceil(float(p.max())) + 2) for p, s in zip(points, size, strict=True)]
    if first[0] >= end[0] or first[1] >= end[1]:
        return layers.new_zeros(len(layers), rows, columns)
    scaled = scale_picture(layers, size, (*first, *end))
    # From -1, the outer edge of the first pixel, to 1, that of the last one.
    grid = [2 * (p - a) / (b - a) - 1 for p, a, b in zip(points, first, end, strict=True)]
    points = torch.stack(grid, dim=-1).to(scaled)
    return grid_sample(scaled[None], points[None], padding_mode="zeros", align_corners=False)[0]
