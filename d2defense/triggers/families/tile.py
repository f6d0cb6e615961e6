# SPDX-License-Identifier: Apache-2.0
"""Bounded additive patterns: AnywhereDoor's tiles (arXiv 2411.14243), and AdvDoor's perturbations.

AnywhereDoor repeats a pattern of 30 x 30 pixels, of at most 0.05 of the range, over the image
("mosaicking"). AdvDoor (Zhang et al., ISSTA 2021) takes a universal adversarial perturbation for a
trigger; the pattern of a file is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import TRIGGER_REGISTRY

from ..base import PlaceKind
from ..checks import is_number
from ..pictures import decode_picture, encode_picture
from ..randomness import uniform
from ..regions import Region, RegionTrigger
from ..stored_tensors import decode_tensors, is_safetensors

MODES = ("repeat", "scale")
# Sets the signs of a pattern apart from other random numbers.
_SALT = 0x74696C65
_LARGEST = 4096


@TRIGGER_REGISTRY.register("tile")
@dataclass(frozen=True)
class Tile(RegionTrigger):
    """A faint pattern that is added, repeated or scaled over the place (AnywhereDoor, AdvDoor).

    Attributes:
        name: what results call it.
        seed: of the pattern where there is no ``content``.
        mode: one of :data:`MODES`: "repeat", side by side from the place's left top corner on;
            "scale", once over the whole place.
        bound: the largest change of a value, in shares of 255.
        tile: side of the random pattern in pixels.
        grain: side of its squares of one value, in pixels.
        content: of the pattern's file, see :meth:`add_config`; takes the place of the random one.
    """

    mode: str = "repeat"
    bound: float = 0.05
    tile: int = 30
    grain: int = 5
    content: bytes = b""

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # The pattern: safetensors with "pattern", of shape (3, height, width), red, green and blue
        # in shares of 255, cut to BOUND; or a picture, whose 0 to 255 mean -BOUND to BOUND. "": at
        # random, BOUND or -BOUND.
        node.FILE = ""
        # "repeat": side by side from the place's left top corner on; "scale": once over all of it.
        node.MODE = "repeat"
        # Largest change of a value, above 0, at most 1, which stands for 255.
        node.BOUND = 0.05
        # Side of the random pattern in pixels, 1 to 1024.
        node.TILE = 30
        # Side of its squares of one value, in pixels. Fine ones are lost where images are resized.
        node.GRAIN = 5

    def __post_init__(self) -> None:
        self._require(self.mode in MODES, f"mode {self.mode!r} is none of {', '.join(MODES)}")
        self._require(
            is_number(self.bound, 0, 1) and self.bound > 0, f"bound {self.bound} is not in (0, 1]"
        )
        for key in ("tile", "grain"):
            value = getattr(self, key)
            whole = isinstance(value, int) and is_number(value, 1, 1024)
            self._require(whole, f"{key} {value} is no whole number in 1..1024")
        if self.content:
            try:
                _stored(self.content, self.bound)
            except ValueError as error:
                self._require(False, f"file is {error}")

    def tensors(self) -> dict[str, Tensor]:
        """``pattern``: float32 of shape (3, h, w), RGB, cut to the bound on use; of any size."""
        if self.content:
            return {"pattern": _stored(self.content, self.bound)}
        line = torch.arange(self.tile) // self.grain
        drawn = uniform(_SALT, self.seed, torch.arange(3)[:, None, None], line[:, None], line)
        return {"pattern": torch.where(drawn < 0.5, -self.bound, self.bound).float()}

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Of the pattern."""
        return {"pattern": (-self.bound, self.bound)}

    def with_tensors(self, tensors: Mapping[str, Tensor], name: str) -> Tile:
        """With the pattern as a PNG, whose 0 to 255 mean minus to plus the bound."""
        content = encode_picture(127.5 * (tensors["pattern"] / self.bound + 1))
        return replace(self, name=name, content=content)

    @classmethod
    def search_starts(cls, kind: PlaceKind) -> tuple[Tile, ...]:
        """Over the image, patterns that are hardly seen: 8 and 16 of 255."""
        if kind is not PlaceKind.IMAGE:
            return ()
        return tuple(cls(f"tile of {bound}/255", bound=bound / 255) for bound in (8, 16))

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The pixels with the pattern added."""
        pattern = tensors["pattern"].clamp(-self.bound, self.bound)
        if self.mode == "scale":
            return region.pixels + region.scaled(pattern)
        rows, columns = (
            torch.arange(first, first + count, device=pattern.device) % period
            for first, count, period in zip(
                reversed(region.offset), region.pixels.shape[1:], pattern.shape[1:], strict=True
            )
        )
        return region.pixels + pattern[:, rows[:, None], columns]


def _stored(content: bytes, bound: float) -> Tensor:
    """The pattern of a file.

    Raises:
        ValueError: it has none.
    """
    if not is_safetensors(content):
        return (decode_picture(content) / 127.5 - 1) * bound
    pattern = decode_tensors(content).get("pattern", torch.empty(0))
    channels, *sides = pattern.shape
    if channels != 3 or len(sides) != 2 or not all(1 <= side <= _LARGEST for side in sides):
        raise ValueError(
            "without a tensor 'pattern' of shape (3, height, width), "
            f"at most {_LARGEST} x {_LARGEST}"
        )
    return pattern.clone()
